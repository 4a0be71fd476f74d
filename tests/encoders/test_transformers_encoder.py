"""Hidden states of `TransformersEncoder`: those of timm's path, and those of the towers inside multimodal models."""

import re

import pytest
import torch
from tiny_towers import MODELS, TOWERS, build, fill
from transformers import vision_utils

from uniflow.encoders import CLIP, DINOv2, DINOv3, InternViT, SigLIP, TimmEncoder, TransformersEncoder
from uniflow.encoders.base import EncoderOutput
from uniflow.encoders.transformers_towers import window_order

SIZES = {"depth": 2, "embed_dim": 48, "num_heads": 2}
# transformers' names -> timm's, in this order.
RENAMES = {
    r"^embeddings\.(class_embedding|cls_token)$": "cls_token",
    r"^embeddings\.register_tokens$": "reg_token",
    r"^embeddings\.position_embeddings?(\.weight)?$": "pos_embed",
    r"^embeddings\.patch_embeddings?(\.projection)?\.": "patch_embed.proj.",
    r"^pre_layrnorm\.": "norm_pre.",
    r"^(encoder|model)\.layers?\.": "blocks.",
    r"\.(layer_norm1|layernorm_before)\.": ".norm1.",
    r"\.(layer_norm2|layernorm_after)\.": ".norm2.",
    r"\.(self_attn|attention)\.": ".attn.",
    r"\.attn\.(out_proj|o_proj|projection_layer)\.": ".attn.proj.",
    r"\.layer_scale(\d)\.lambda1$": r".ls\1.gamma",
    r"\.lambda_(\d)$": r".ls\1.gamma",
    r"\.mlp\.up_proj\.": ".mlp.fc1.",
    r"\.mlp\.down_proj\.": ".mlp.fc2.",
}


def to_timm(state: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A tower's tensors in the key format of a timm ViT."""
    renamed = {}
    for key, value in state.items():
        for theirs, ours in RENAMES.items():
            key = re.sub(theirs, ours, key)
        renamed[key] = value
    if "blocks.0.mlp.gate_proj.weight" in renamed:  # SwiGLU: one matrix, the gate in front
        renamed = {key.replace("mlp.fc1.", "mlp.value."): value for key, value in renamed.items()}
        fuse(renamed, ("mlp.gate_proj", "mlp.value"), "mlp.fc1")
    fuse(renamed, ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "attn.qkv")
    for key in ("cls_token", "reg_token", "pos_embed"):
        if key in renamed:
            renamed[key] = renamed[key].reshape(1, -1, renamed[key].shape[-1])
    if getattr(model, "no_embed_class", False) and "pos_embed" in renamed and "cls_token" in renamed:
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    if "blocks.0.gamma_1" in model.state_dict():
        renamed = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in renamed.items()}
    return renamed


def fuse(state: dict[str, torch.Tensor], parts: tuple[str, ...], whole: str) -> None:
    for block in ("blocks.0.", "blocks.1."):
        for kind in ("weight", "bias"):
            tensors = [state.pop(f"{block}{part}.{kind}", None) for part in parts]
            if all(tensor is not None for tensor in tensors):
                state[f"{block}{whole}.{kind}"] = torch.cat(tensors)


def images(encoder, rows: int, columns: int, count: int = 2) -> torch.Tensor:
    p = encoder.spec.patch_size
    return torch.rand(count, 3, rows * p, columns * p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same_states(left: EncoderOutput, right: EncoderOutput, tolerance: float) -> None:
    assert left.grid == right.grid
    assert len(left.hidden_states) == len(right.hidden_states)
    for ours, theirs in zip(
        left.hidden_states + left.prefix_tokens, right.hidden_states + right.prefix_tokens, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


# The timm model, and what else its config needs in transformers. LayerScale and norms come with the weights.
PARITY: dict[str, tuple[type[TimmEncoder], str, dict]] = {
    "clip": (CLIP, "l14_openai", {"model_type": "clip_vision_model"}),
    "clip_gelu": (CLIP, "b16_laion", {"model_type": "clip_vision_model", "hidden_act": "gelu"}),
    # timm's other SigLIP towers have the exact GELU, where transformers has its tanh approximation.
    "siglip": (SigLIP, "v2_so400m_16_256", {"model_type": "siglip_vision_model"}),
    "siglip_gelu": (SigLIP, "v1_b16_224", {"model_type": "siglip_vision_model", "hidden_act": "gelu"}),
    "dinov2": (DINOv2, "b14", {"model_type": "dinov2"}),
    "dinov2_swiglu": (DINOv2, "g14", {"model_type": "dinov2", "use_swiglu_ffn": True}),
    "dinov2_registers": (DINOv2, "b14_reg4", {"model_type": "dinov2_with_registers"}),
    "dinov3": (DINOv3, "b16", {"model_type": "dinov3_vit", "query_bias": False, "value_bias": False}),
    "internvit": (InternViT, "300m", {"model_type": "internvl_vision", "attention_bias": True}),
}


@pytest.mark.parametrize("grid", [(4, 4), (6, 5)])
@pytest.mark.parametrize("case", PARITY)
def test_hidden_states_are_those_of_the_timm_path(case, grid):
    family, variant, config = PARITY[case]
    sizes = {"image_size": 4 * (16 if "16" in variant else 14)} | SIZES
    # transformers resamples position embeddings with antialiasing only in DINOv2 with registers.
    plain = {} if case in ("dinov2_registers", "dinov3") else {"pos_embed_antialias": False}
    timm_encoder = family(variant, weights=None, **sizes, **plain)
    spec, block = timm_encoder.spec, timm_encoder.blocks[0]
    encoder = TransformersEncoder(
        "local",
        weights=None,
        config={
            "hidden_size": 48,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": spec.image_size,
            "patch_size": spec.patch_size,
            "num_register_tokens": max(spec.num_prefix_tokens - 1, 0),
            "layer_norm_eps": block.norm1.eps,
        }
        | config,
    )
    assert encoder.spec == spec
    fill(encoder.double())
    timm_encoder.double().model.load_state_dict(to_timm(encoder.model.state_dict(), timm_encoder.model), strict=True)
    pixels = images(encoder, *grid)
    # On another grid, and for rotary angles, some parts stay in float32.
    exact = grid == (4, 4) and case != "dinov3"
    same_states(encoder(pixels), timm_encoder(pixels), 1e-9 if exact else 1e-5)


@torch.no_grad()
def states_of_tower(tower: torch.nn.Module, encoder: TransformersEncoder, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the blocks of a tower as it stands in its model, tokens in row-major order."""
    pixels, p = encoder.normalize(pixels), encoder.spec.patch_size
    rows, columns = pixels.shape[-2] // p, pixels.shape[-1] // p
    if tower.config.model_type == "siglip2_vision_model":
        patches = pixels.reshape(-1, 3, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[rows, columns]] * len(pixels))
        return list(tower(patches, None, shapes, output_hidden_states=True).hidden_states[1:])
    if "qwen" not in tower.config.model_type:
        resize = {} if "dinov" in tower.config.model_type else {"interpolate_pos_encoding": True}
        return list(tower(pixels, output_hidden_states=True, **resize).hidden_states[1:])
    # Qwen-VL's processor: two equal frames, patches of a 2 x 2 block behind each other.
    merge = pixels.reshape(-1, 3, 1, rows // 2, 2, p, columns // 2, 2, p).expand(-1, -1, 2, -1, -1, -1, -1, -1, -1)
    merge = merge.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(len(pixels) * rows * columns, -1)
    grids = torch.tensor([[1, rows, columns]] * len(pixels))
    order = torch.arange(rows * columns).reshape(rows // 2, 2, columns // 2, 2).transpose(1, 2).reshape(-1, 4)
    if "qwen2_5" in tower.config.model_type:
        order = order[vision_utils.get_vision_window_index(grids[:1], 2, tower.config.window_size, p)[0]]
    states = tower(merge, grids, output_hidden_states=True).hidden_states[1:]
    return [state.unflatten(0, (len(pixels), -1))[:, order.flatten().argsort()] for state in states]


@pytest.mark.parametrize("name", MODELS)
def test_tower_inside_a_model(name, tmp_path):
    model, tower = build(name)
    model.save_pretrained(tmp_path)
    encoder = TransformersEncoder(str(tmp_path)).eval()
    assert not any(parameter.is_meta for parameter in encoder.parameters())
    for grid in [(4, 4), (6, 10)]:
        pixels = images(encoder, *grid).float()
        output = encoder(pixels)
        expected = states_of_tower(tower, encoder, pixels)
        assert len(output.hidden_states) == len(expected) == 2
        for prefix, hidden, state in zip(output.prefix_tokens, output.hidden_states, expected, strict=True):
            torch.testing.assert_close(torch.cat([prefix, hidden], dim=1), state, rtol=0, atol=1e-5)


def test_tower_of_qwen_takes_odd_grids():
    """Grids that cannot be merged 2 x 2."""
    encoder = TransformersEncoder("local", weights=None, config=TOWERS["qwen2_5_vl"]).eval()
    fill(encoder)
    pixels = images(encoder, 8, 5)
    # Block 0 attends within windows of 4 x 4 patches: those of the upper half see nothing of the lower one.
    whole, half = encoder(pixels).feature_map(0), encoder(pixels[:, :, : 5 * encoder.spec.patch_size]).feature_map(0)
    torch.testing.assert_close(half[:, :, :4], whole[:, :, :4])
    assert not torch.allclose(half[:, :, 4:], whole[:, :, 4:5])


def test_window_order():
    assert window_order(3, 3, 2).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    index, _ = vision_utils.get_vision_window_index(torch.tensor([[1, 6, 7]]), 1, 4, 1)
    assert window_order(6, 7, 4).tolist() == index.tolist()
