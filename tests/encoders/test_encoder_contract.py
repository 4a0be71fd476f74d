"""What every encoder of the package promises, at tiny size with random weights."""

import copy
import importlib
import inspect
import pkgutil
from functools import cache, partial

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_towers import TOWERS

import uniflow.encoders
from uniflow.core.part import build_part, part_config
from uniflow.encoders import (
    CLIP,
    DINOv2,
    DINOv3,
    EmbeddedViT,
    InternViT,
    SceneViT,
    SigLIP,
    TimmEncoder,
    TransformersEncoder,
    VisionEncoder,
)

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}

# One of each kind of architecture in a family; every class of the package has to be here (tested below).
CASES = {
    "scene_vit": partial(SceneViT, **TINY),
    "embedded_vit": partial(EmbeddedViT, **TINY),
    "clip": partial(CLIP, "l14_openai", **TINY),
    "clip_gelu": partial(CLIP, "b16_laion", **TINY),
    "siglip": partial(SigLIP, "v2_so400m_14_224", **TINY),
    "dinov2": partial(DINOv2, "s14", **TINY),
    "dinov2_reg_swiglu": partial(DINOv2, "g14_reg4", **TINY),
    "internvit": partial(InternViT, **TINY),
    "dinov3": partial(DINOv3, "l16", **TINY),
    "dinov3_swiglu": partial(DINOv3, "h16_plus", **TINY),
    "timm_augreg": partial(TimmEncoder, "vit_base_patch16_224.augreg_in21k", **TINY),
    "timm_eva02": partial(TimmEncoder, "eva02_base_patch14_224.mim_in22k", **TINY),
    "no_antialias": partial(InternViT, pos_embed_antialias=False, **TINY),
    **{f"transformers_{name}": partial(TransformersEncoder, name, config=config) for name, config in TOWERS.items()},
}
TIMM = [case for case, make in CASES.items() if issubclass(make.func, TimmEncoder)]


def make(case: str, **arguments) -> VisionEncoder:
    return build(case, **arguments) if arguments else copy.deepcopy(built_once(case))


@cache
def built_once(case: str) -> VisionEncoder:
    return build(case)


def build(case: str, **arguments) -> VisionEncoder:
    torch.manual_seed(0)
    encoder = CASES[case](weights=None, **arguments)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            # Fresh LayerScale (1e-5) makes blocks near identities, which would hide mistakes.
            if "gamma" in name:
                parameter.fill_(0.5)
    return encoder


def draw_images(encoder: VisionEncoder, rows: int = 4, columns: int = 3) -> torch.Tensor:
    p = encoder.spec.patch_size
    return torch.randint(0, 256, (2, 3, rows * p, columns * p), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


def package_encoders() -> set[type]:
    for module in pkgutil.walk_packages(uniflow.encoders.__path__, "uniflow.encoders."):
        importlib.import_module(module.name)
    found, todo = set(), [VisionEncoder]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__module__.startswith("uniflow.") and not inspect.isabstract(cls):
                found.add(cls)
    return found


def test_every_encoder_of_the_package_is_tested_here():
    assert package_encoders() == {case.func for case in CASES.values()}


@pytest.mark.parametrize("grid", [(4, 3), (2, 5), (1, 1)])
def test_shapes_and_spec(case, grid):
    encoder = make(case)
    output = encoder(draw_images(encoder, *grid))
    spec = encoder.spec
    assert (spec.embed_dim, spec.num_layers) == (32, 2)
    assert output.grid == grid
    assert len(output.hidden_states) == len(output.prefix_tokens) == spec.num_layers
    for hidden, prefix in zip(output.hidden_states, output.prefix_tokens, strict=True):
        assert hidden.shape == (2, grid[0] * grid[1], spec.embed_dim)
        assert prefix.shape == (2, spec.num_prefix_tokens, spec.embed_dim)
    assert output.feature_map().shape == (2, spec.embed_dim, *grid)
    assert not torch.equal(output.hidden_states[0], output.hidden_states[1])


@pytest.mark.parametrize(
    ("case", "prefix", "image_size"),
    [("siglip", 0, 224), ("clip", 1, 224), ("dinov2", 1, 518), ("dinov2_reg_swiglu", 5, 518), ("dinov3", 5, 256),
     ("internvit", 1, 448), ("scene_vit", 1, 64), ("transformers_clip", 1, 56), ("transformers_siglip2_naflex", 0, 64),
     ("transformers_dinov2_registers", 5, 56), ("transformers_dinov3", 5, 64), ("transformers_internvit", 1, 56),
     ("transformers_qwen2_vl", 0, 448), ("transformers_qwen3_vl", 0, 64)],
)  # fmt: skip
def test_prefix_tokens_and_image_size(case, prefix, image_size):
    spec = make(case).spec
    assert (spec.num_prefix_tokens, spec.image_size) == (prefix, image_size)


# Without antialiasing the result differs from timm's by intent; the official release's numbers hold there. Those of the
# families' references are in test_family_reference.py.
@pytest.mark.parametrize("case", sorted(set(TIMM) - {"no_antialias"}))
def test_hidden_states_are_those_of_timm(case):
    encoder = make(case, pos_embed_antialias=True, activation="timm")
    cfg, spec = encoder.model.pretrained_cfg, encoder.spec
    sizes = {**TINY, "patch_size": spec.patch_size, "img_size": spec.image_size}
    sizes |= encoder.timm_arguments  # a stem of the encoder's own
    reference = timm.create_model(cfg["architecture"], num_classes=0, global_pool="", dynamic_img_size=True, **sizes)
    report = reference.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith(("norm.", "fc_norm.")) for key in report.missing_keys)
    images = draw_images(encoder)
    output = encoder(images)
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    last = torch.cat([output.prefix_tokens[-1], output.hidden_states[-1]], dim=1)
    torch.testing.assert_close(reference.norm(last), reference.forward_features((images / 255 - mean) / std))


def test_every_trained_parameter_gets_a_gradient(case):
    encoder = make(case)
    (encoder(draw_images(encoder)).hidden_states[-1] ** 3).mean().backward()
    parameters = dict(encoder.named_parameters())
    assert all(p.requires_grad for p in parameters.values())
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_frozen(case):
    encoder = make(case, tune="frozen")
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(hidden.requires_grad for hidden in encoder(draw_images(encoder)).hidden_states)


def test_last_block_only(case):
    encoder = make(case, tune=1)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    last = {id(p) for p in encoder.blocks[1].parameters()}
    assert trained == {name for name, p in encoder.named_parameters() if id(p) in last} != set()
    before = copy.deepcopy(encoder.state_dict())
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
    output = encoder(draw_images(encoder))
    assert [hidden.requires_grad for hidden in output.hidden_states] == [False, True]
    (output.hidden_states[-1] ** 3).mean().backward()
    optimizer.step()
    assert {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])} == trained


def test_gradient_checkpointing_changes_nothing_but_memory(case):
    gradients = []
    for enable in (False, True):
        encoder = make(case, gradient_checkpointing=enable)
        recomputed = []
        inside = next(encoder.blocks[0].children())  # hooks of the block itself may stand outside the checkpoint
        inside.register_forward_pre_hook(lambda *_, log=recomputed: log.append(1))
        loss = (encoder(draw_images(encoder)).hidden_states[-1] ** 3).mean()
        loss.backward()
        assert len(recomputed) == (2 if enable else 1)
        gradients.append([loss, *(p.grad for p in encoder.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_bf16_autocast(case):
    encoder = make(case)
    exact = encoder(draw_images(encoder)).hidden_states[-1]
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(draw_images(encoder)).hidden_states[-1]
    assert F.cosine_similarity(exact, output.float(), dim=-1).min() > 0.99
    output.float().pow(2).mean().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_float64(case):
    encoder = make(case)
    exact = encoder(draw_images(encoder)).hidden_states[-1]
    double = encoder.double()(draw_images(encoder)).hidden_states[-1]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), exact, rtol=1e-3, atol=1e-4)


def test_uint8_and_float_images_give_the_same(case):
    encoder = make(case)
    images = draw_images(encoder)
    torch.testing.assert_close(encoder(images).hidden_states, encoder(images.float() / 255).hidden_states)


def test_training_mode_draws_nothing(case):
    encoder = make(case)
    images = draw_images(encoder)
    assert torch.equal(encoder.train()(images).hidden_states[-1], encoder.eval()(images).hidden_states[-1])


def test_images_are_independent_of_their_batch(case):
    encoder = make(case)
    images = draw_images(encoder)
    torch.testing.assert_close(encoder(images).hidden_states[-1][1:], encoder(images[1:]).hidden_states[-1])


def test_refuses_sizes_that_are_no_multiple_and_other_channels(case):
    encoder = make(case)
    p = encoder.spec.patch_size
    with pytest.raises(ValueError, match=f"multiples of the patch size {p}"):
        encoder(torch.zeros(1, 3, 2 * p, 2 * p + 1))
    with pytest.raises(ValueError, match="must be RGB"):
        encoder(torch.zeros(1, 1, p, p))


def test_rebuilt_from_its_config(case):
    encoder = make(case, tune=1)
    config = part_config(encoder)
    rebuilt = build_part(config, VisionEncoder, weights=None)
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    assert part_config(rebuilt) == config
    assert rebuilt.spec == encoder.spec
    images = draw_images(encoder)
    assert torch.equal(rebuilt(images).hidden_states[-1], encoder(images).hidden_states[-1])


def test_deepcopy_is_independent(case):
    encoder = make(case)
    images = draw_images(encoder)
    before = encoder(images).hidden_states[-1]
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(images).hidden_states[-1], before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(encoder(images).hidden_states[-1], before)
    assert not torch.allclose(twin(images).hidden_states[-1], before)


def test_built_on_the_meta_device(case):
    with torch.device("meta"):
        encoder = CASES[case](weights=None)
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {
        k: v.shape for k, v in make(case).state_dict().items()
    }
