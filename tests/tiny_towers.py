"""Tiny vision towers of transformers, alone and inside other models."""

import copy
import re
from typing import Any

import torch

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN = {"depth": 2, "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 64, "num_heads": 2}
DINO = {"attention_probs_dropout_prob": 0.3, "hidden_dropout_prob": 0.3, "drop_path_rate": 0.3}
P14 = {"image_size": 56, "patch_size": 14}
P16 = {"image_size": 64, "patch_size": 16}

# Whatever draws at random is on, to see that encoders put it off.
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {"model_type": "clip_vision_model", "attention_dropout": 0.3} | SIZES | P14,
    "siglip": {"model_type": "siglip_vision_model", "attention_dropout": 0.3} | SIZES | P14,
    "siglip2_naflex": {"model_type": "siglip2_vision_model", "num_patches": 16, "patch_size": 16} | SIZES,
    "dinov2": {"model_type": "dinov2"} | DINO | SIZES | P14,
    "dinov2_registers": {"model_type": "dinov2_with_registers", "use_swiglu_ffn": True} | DINO | SIZES | P14,
    "dinov3": {
        "model_type": "dinov3_vit",
        "num_register_tokens": 4,
        "pos_embed_rescale": 2.0,
        "pos_embed_shift": 0.5,
        "drop_path_rate": 0.3,
        "attention_dropout": 0.3,
    }
    | SIZES
    | P16,
    "internvit": {
        "model_type": "internvl_vision",
        "attention_bias": True,
        "hidden_dropout_prob": 0.3,
        "projection_dropout": 0.3,
        "use_mask_token": True,
        "use_mean_pooling": False,
    }
    | SIZES
    | P14,
    "internvit_qk_norm": {"model_type": "internvl_vision", "use_qk_norm": True, "norm_type": "rms_norm"} | SIZES | P14,
    # Its hidden_size is that of its language model.
    "qwen2_vl": {"model_type": "qwen2_vl_vision", "depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2},
    "qwen2_5_vl": {"model_type": "qwen2_5_vl_vision", "window_size": 56, "fullatt_block_indexes": [1]} | QWEN,
    "qwen3_vl": {"model_type": "qwen3_vl_vision", "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    | QWEN,
}

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
LLAMA = TEXT | {"model_type": "llama"}
# Class, other arguments of its config, its tower (of TOWERS), where the tower is.
MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "clip": ("CLIPModel", {"text_config": TEXT}, "clip", "vision_model"),
    "siglip": ("SiglipModel", {"text_config": TEXT}, "siglip", "vision_model"),
    "siglip2": ("Siglip2Model", {"text_config": TEXT}, "siglip2_naflex", "vision_model"),
    "llava": ("LlavaForConditionalGeneration", {"text_config": LLAMA}, "clip", "model.vision_tower"),
    "llava_onevision": (
        "LlavaOnevisionForConditionalGeneration",
        {"text_config": LLAMA},
        "siglip",
        "model.vision_tower",
    ),
    "internvl": ("InternVLForConditionalGeneration", {"text_config": LLAMA}, "internvit", "model.vision_tower"),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", {"text_config": TEXT | ROPE}, "qwen2_vl", "model.visual"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", {"text_config": TEXT | ROPE}, "qwen2_5_vl", "model.visual"),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {"text_config": TEXT | ROPE | {"head_dim": 8}},
        "qwen3_vl",
        "model.visual",
    ),
    "dinov2": ("Dinov2ForImageClassification", {}, "dinov2", "dinov2"),
    "dinov3": ("DINOv3ViTModel", {}, "dinov3", ""),
}


def fill(model: torch.nn.Module) -> None:
    """Random values everywhere: fresh position embeddings, tokens and norms are zeros and ones, which hide mistakes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def build(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A tiny model with random weights, and the vision tower in it."""
    import transformers

    cls, arguments, tower, path = MODELS[name]
    vision = copy.deepcopy(TOWERS[tower])
    cls = getattr(transformers, cls)
    whole = cls.config_class(**arguments, vision_config=vision) if arguments else cls.config_class(**vision)
    model = cls(whole).eval()
    fill(model)
    return model, model.get_submodule(path)


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
    if "blocks.0.mlp.fc1_g.weight" in model.state_dict():  # SwiGLU in two matrices
        renamed = {key.replace("mlp.fc1.", "mlp.fc1_x."): value for key, value in renamed.items()}
        renamed = {key.replace("mlp.gate_proj.", "mlp.fc1_g."): value for key, value in renamed.items()}
    elif "blocks.0.mlp.gate_proj.weight" in renamed:  # one matrix, the gate in front
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
