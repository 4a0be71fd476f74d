"""Every family computes what its reference, transformers' class, computes: at the size of pretraining, at smaller and
larger ones, and on grids that are not square. So does `TransformersEncoder`.
"""

import inspect
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from tiny_towers import fill, to_timm

from uniflow.core.part import build_part, part_config
from uniflow.encoders import CLIP, DINOv2, DINOv3, InternViT, SceneViT, SigLIP, TimmEncoder, TransformersEncoder
from uniflow.encoders.base import VisionEncoder

SIZES = {"depth": 2, "embed_dim": 48, "num_heads": 2}
NATIVE = (4, 4)
# Smaller and larger squares, longer and wider grids, and one with as many patches as the square of pretraining.
OTHER = [(3, 3), (7, 7), (6, 5), (2, 3), (3, 9), (2, 8)]


@dataclass
class Case:
    """A family's variant, its reference, and what of the reference's config is not the default of its class."""

    family: type[TimmEncoder]
    variant: str
    reference: str
    config: dict[str, Any] = field(default_factory=dict)
    antialias: bool = False
    tanh_in_timm: bool = True


DINOV3 = {"query_bias": False, "value_bias": False}  # timm leaves out these biases, which are zero in the weights
CASES = {
    "clip": Case(CLIP, "l14_openai", "CLIPVisionModel"),
    "clip_gelu": Case(CLIP, "b16_laion", "CLIPVisionModel", {"hidden_act": "gelu"}),
    "siglip": Case(SigLIP, "v2_so400m_16_256", "SiglipVisionModel"),
    "siglip_v1": Case(SigLIP, "v1_b16_224", "SiglipVisionModel", tanh_in_timm=False),
    "siglip_patch14": Case(SigLIP, "v2_so400m_14_378", "SiglipVisionModel", tanh_in_timm=False),
    "dinov2": Case(DINOv2, "b14", "Dinov2Model"),
    "dinov2_swiglu": Case(DINOv2, "g14", "Dinov2Model", {"use_swiglu_ffn": True}),
    "dinov2_reg": Case(DINOv2, "b14_reg4", "Dinov2WithRegistersModel", antialias=True),
    "dinov2_reg_swiglu": Case(DINOv2, "g14_reg4", "Dinov2WithRegistersModel", {"use_swiglu_ffn": True}, antialias=True),
    "internvit": Case(InternViT, "300m", "InternVLVisionModel", {"attention_bias": True}),
    "internvit_v2_5": Case(InternViT, "300m_v2_5", "InternVLVisionModel", {"attention_bias": True}),
    "dinov3": Case(DINOv3, "b16", "DINOv3ViTModel", DINOV3),
    "dinov3_swiglu": Case(DINOv3, "s16_plus", "DINOv3ViTModel", DINOV3 | {"use_gated_mlp": True, "hidden_act": "silu"}),
}
RESAMPLED = [name for name, case in CASES.items() if case.family is not DINOv3]
EXACT_GELU = [name for name, case in CASES.items() if not case.tanh_in_timm]


def patch(case: Case) -> int:
    return 16 if "16" in case.variant else 14


def family_encoder(case: Case, **arguments: Any) -> TimmEncoder:
    return case.family(case.variant, **{"image_size": NATIVE[0] * patch(case), **SIZES, **arguments})


def reference_of(case: Case) -> torch.nn.Module:
    """The reference, tiny and with random values everywhere, in float64."""
    encoder = family_encoder(case, weights=None)
    cls = getattr(transformers, case.reference)
    mlp = encoder.blocks[0].mlp
    config = cls.config_class(
        hidden_size=48,
        intermediate_size=(mlp.fc1_g if hasattr(mlp, "fc1_g") else mlp.fc1).out_features,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=NATIVE[0] * patch(case),
        patch_size=patch(case),
        num_register_tokens=max(encoder.spec.num_prefix_tokens - 1, 0),
        **case.config,
    )
    model = cls(config)
    fill(model)
    return model.double().eval()


def is_needed(key: str) -> bool:
    return not key.startswith(("layernorm", "norm.", "post_layernorm", "head.")) and "mask_token" not in key


@pytest.fixture(scope="module")
def built(request, tmp_path_factory) -> tuple[Case, torch.nn.Module, str]:
    """The case, its reference, and a file with the reference's weights in timm's keys."""
    tmp_path = tmp_path_factory.mktemp("timm")
    case = CASES[request.param]
    model = reference_of(case)
    state = {k.removeprefix("vision_model."): v.float() for k, v in model.state_dict().items()}
    state = {key: value for key, value in state.items() if is_needed(key)}
    converted = to_timm(state, family_encoder(case, weights=None).model)
    save_file({k: v.contiguous() for k, v in converted.items()}, tmp_path / "timm.safetensors")
    return case, model, str(tmp_path / "timm.safetensors")


def images(patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, grid[0] * patch_size, grid[1] * patch_size)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def reference_states(model: torch.nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Outputs (B, P + N, D) of the reference's blocks for normalised pixels."""
    outputs: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    (blocks,) = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and hasattr(m[0], "mlp")]
    hooks = [block.register_forward_hook(keep) for block in blocks]
    asked = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    asked = asked or isinstance(model, transformers.CLIPVisionModel | transformers.SiglipVisionModel)
    model(pixels, **({"interpolate_pos_encoding": True} if asked else {}))
    for hook in hooks:
        hook.remove()
    return outputs


@torch.no_grad()
def distance(encoder: VisionEncoder, model: torch.nn.Module, grid: tuple[int, int]) -> float:
    """The largest difference of any hidden state, class token and registers included."""
    encoder = encoder.double()
    pixels = images(encoder.spec.patch_size, grid)
    output = encoder(pixels)
    ours = [torch.cat(pair, dim=1) for pair in zip(output.prefix_tokens, output.hidden_states, strict=True)]
    theirs = reference_states(model, encoder.normalize(pixels))
    assert len(ours) == len(theirs) == 2
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def tolerance(case: Case, grid: tuple[int, int]) -> float:
    # In float32 are resampled tables, rotary angles, and the sum of class token and position in files with registers.
    exact = grid == NATIVE and case.family is not DINOv3 and "_reg4" not in case.variant
    return 1e-9 if exact else 1e-5


@pytest.mark.parametrize("built", CASES, indirect=True)
def test_hidden_states_are_those_of_the_reference(built):
    case, model, file = built
    encoder = family_encoder(case, weights=file)
    for grid in [NATIVE, *OTHER]:
        assert distance(encoder, model, grid) < tolerance(case, grid), grid


@pytest.mark.parametrize("built", CASES, indirect=True)
def test_transformers_encoder_is_the_reference_too(built):
    case, model, file = built
    encoder = TransformersEncoder("local", weights=None, config=model.config.to_dict())
    assert encoder.spec == family_encoder(case, weights=file).spec  # mean and standard deviation among it
    state = {k.removeprefix("vision_model."): v for k, v in model.state_dict().items()}
    encoder.double().model.load_state_dict({key: value for key, value in state.items() if is_needed(key)})
    for grid in [NATIVE, *OTHER]:
        assert distance(encoder, model, grid) < 1e-9, grid


@pytest.mark.parametrize("built", RESAMPLED, indirect=True)
def test_the_other_antialiasing_is_not_the_references(built):
    case, model, file = built
    assert family_encoder(case, weights=file).init_args["pos_embed_antialias"] is case.antialias
    other = family_encoder(case, weights=file, pos_embed_antialias=not case.antialias)
    assert distance(other, model, NATIVE) < tolerance(case, NATIVE)
    assert distance(other, model, (3, 3)) > 1e-3


@pytest.mark.parametrize("built", EXACT_GELU, indirect=True)
def test_the_activation_of_timm_is_not_the_references(built):
    case, model, file = built
    assert family_encoder(case, weights=file).init_args["activation"] == "gelu_tanh"
    assert distance(family_encoder(case, weights=file, activation="timm"), model, NATIVE) > 1e-5


@pytest.mark.parametrize("built", RESAMPLED, indirect=True)
def test_a_file_with_a_larger_table_is_resampled_as_the_reference_does(built):
    case, model, file = built
    encoder = family_encoder(case, weights=file, image_size=3 * patch(case))
    assert distance(encoder, model, (3, 3)) < 1e-5


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_activation_changes_the_output(activation):
    encoders = [DINOv2("s14", weights=None, image_size=56, activation=name, **SIZES) for name in (activation, "timm")]
    fill(encoders[0])
    encoders[1].load_state_dict(encoders[0].state_dict())
    left, right = (encoder.double()(images(14, NATIVE)).hidden_states[-1] for encoder in encoders)
    assert torch.equal(left, right) == (activation == "gelu")


def test_refuses_an_activation_that_cannot_be():
    with pytest.raises(
        ValueError, match="activation must be one of timm, gelu, gelu_tanh, quick_gelu or null, not 'x'"
    ):
        SigLIP(weights=None, activation="x", **SIZES)
    with pytest.raises(ValueError, match=r"cannot be built as a ViT encoder.*'activation'") as error:
        DINOv3(weights=None, activation="gelu", **SIZES)
    assert "\n" not in str(error.value)


# What earlier versions recorded: antialiasing said, activation not.
OLD = {
    "weights": None,
    "tune": "full",
    "gradient_checkpointing": False,
    "pos_embed_antialias": True,
    "patch_size": None,
    "image_size": 56,
    "mlp_ratio": None,
    "lora_rank": None,
    "lora_alpha": None,
    "lora_targets": None,
} | SIZES


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("family", "variant", "name"),
    [
        (DINOv2, "s14", "vit_small_patch14_dinov2.lvd142m"),
        (SigLIP, "v2_so400m_14_224", "vit_so400m_patch14_siglip_224.v2_webli"),
        (SigLIP, "v2_so400m_16_256", "vit_so400m_patch16_siglip_256.v2_webli"),
        (CLIP, "l14_openai", "vit_large_patch14_clip_quickgelu_224.openai"),
        (InternViT, "300m", "vit_intern300m_patch14_448.ogvl_dist"),
    ],
)
def test_an_encoder_saved_before_gives_its_old_numbers(family, variant, name, recorded):
    """Those of timm: antialiased, and with the activation of timm's model."""
    arguments = {"variant": variant} | OLD | {"image_size": NATIVE[0] * (16 if "_16_" in variant else 14)}
    if not recorded:  # what the first configs left out was the default
        del arguments["pos_embed_antialias"]
    config = {"class_path": f"uniflow.encoders.{family.__name__}", "init_args": arguments}
    saved = build_part(json.loads(json.dumps(config)), VisionEncoder)
    fill(saved)
    timm_like = TimmEncoder(name, weights=None, image_size=arguments["image_size"], **SIZES)
    timm_like.load_state_dict(saved.state_dict())
    now = family(variant, weights=None, image_size=arguments["image_size"], **SIZES)
    now.load_state_dict(saved.state_dict())
    pixels = images(saved.spec.patch_size, (3, 3)).float()
    old = saved(pixels).hidden_states[-1]
    assert torch.equal(old, timm_like(pixels).hidden_states[-1])
    assert not torch.allclose(old, now(pixels).hidden_states[-1], atol=1e-3)
    # Saved once more, it says both.
    again = part_config(saved)["init_args"]
    assert (again["pos_embed_antialias"], again["activation"]) == (True, "timm")


@pytest.mark.parametrize(
    ("make", "antialias", "activation"),
    [
        (lambda: CLIP(weights=None, **SIZES), False, "timm"),
        (lambda: SigLIP(weights=None, **SIZES), False, "gelu_tanh"),
        (lambda: SigLIP(weights=None, activation=None, pos_embed_antialias=None, **SIZES), False, "gelu_tanh"),
        (lambda: SigLIP(weights=None, activation="gelu", pos_embed_antialias=True, **SIZES), True, "gelu"),
        (lambda: DINOv2("s14", weights=None, **SIZES), False, "timm"),
        (lambda: DINOv2("s14_reg4", weights=None, **SIZES), True, "timm"),
        (lambda: InternViT(weights=None, **SIZES), False, "timm"),
        (lambda: DINOv3(weights=None, **SIZES), True, "timm"),  # it has no table, and false is refused
        (lambda: SceneViT(weights=None), True, "timm"),
        (lambda: TimmEncoder("vit_small_patch14_dinov2.lvd142m", weights=None, **SIZES), True, "timm"),
    ],
)
def test_what_is_recorded_is_what_null_stands_for(make, antialias, activation):
    config = part_config(make())
    assert config["init_args"]["pos_embed_antialias"] is antialias
    assert config["init_args"]["activation"] == activation
    assert part_config(build_part(json.loads(json.dumps(config)), VisionEncoder)) == config


class Closed(TimmEncoder):
    """One of another package, which hands no arguments on."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__("vit_tiny_patch16_224", weights=None, depth=depth)


def test_arguments_that_a_class_does_not_take_are_not_recorded():
    encoder = Closed()
    assert encoder.init_args == {"depth": 1}
    build_part({"class_path": f"{__name__}.Closed", "init_args": {"depth": 2}}, VisionEncoder)


def test_help_of_the_command_line_lists_the_defaults():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DINOv2, "encoder")
    text = parser.format_help()
    assert "--encoder.pos_embed_antialias" in text
    assert "--encoder.activation" in text
    assert parser.parse_args(["--encoder.activation=gelu"]).encoder.activation == "gelu"
    assert parser.parse_args(["--encoder.pos_embed_antialias=true"]).encoder.pos_embed_antialias is True
