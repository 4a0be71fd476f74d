"""Checkpoints in the format of the paper's public release (arXiv 2510.10575): read, and written.

The network is the same one; only its names differ. So reading and writing rename tensors and change no number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from uniflow.bottleneck import Bottleneck, MLPBottleneck
from uniflow.core.json_files import read_json_object
from uniflow.core.part import part_config
from uniflow.core.tensors import refuse_nonfinite
from uniflow.decoders import PatchFlowDecoder, PixelDecoder
from uniflow.encoders import InternViT, VisionEncoder
from uniflow.tokenizer.saving import CONFIG_NAME, WEIGHTS_NAME, check_fit, read_tensors, write_directory

PART_NAMES = ("encoder", "bottleneck", "decoder")
INDEX_NAME = "model.safetensors.index.json"
# What the release's code has in one form only, and what the parts compute.
FIXED: dict[str, Any] = {
    "model_type": "uniflow",
    "num_channels": 3,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "qk_normalization": False,
    "use_chal_proj": True,
    "use_global_blocks": True,
    "decoder_type": "mlp",
}
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "latent_ch",
    "vit_hidden_size",
    "global_blocks_depth",
    "num_decoder_layers",
    "num_sampling_steps",
)
BLOCKS = ("num_hidden_layers", "global_blocks_depth", "num_decoder_layers")
LARGEST = 2**16  # of any size: far more than any model has, and no product of them overflows
# Fields that the release's code needs and that say nothing about the network in use.
WRITTEN: dict[str, Any] = {
    "architectures": ["UniFlowVisionModel"],
    "auto_map": {
        "AutoConfig": "configuration_uniflow.UniFlowVisionConfig",
        "AutoModel": "modeling_uniflow.UniFlowVisionModel",
    },
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "torch_dtype": "float32",
    "transformers_version": "4.37.2",
    "use_cfg": False,
    "use_disp_loss": False,
    "use_flash_attn": True,
}
GLOBAL_HEADS = 16  # whatever the width
# Arguments that the format cannot hold and that change no result of a trained tokenizer. An encoder's sizes
# are read from the model itself.
TRAINING_ONLY = {
    "encoder": {
        "variant", "weights", "tune", "gradient_checkpointing",
        "depth", "embed_dim", "num_heads", "patch_size", "image_size", "mlp_ratio",
    },
    "bottleneck": set(),
    "decoder": {"uniform_share", "end_point_mass", "condition_dropout"},
}  # fmt: skip
# Ours -> the release's; the first that fits the start of a name replaces it.
PREFIXES = {
    "encoder.model.cls_token": "embeddings.class_embedding",
    "encoder.model.pos_embed": "embeddings.position_embedding",
    "encoder.model.patch_embed.proj.": "embeddings.patch_embedding.",
    "encoder.model.blocks.": "encoder.layers.",
    "bottleneck.fc1.": "chal_proj.c_fc.",
    "bottleneck.fc2.": "chal_proj.c_proj.",
    "decoder.global_stage.up.0.": "chal_unproj.c_fc.",
    "decoder.global_stage.up.2.": "chal_unproj.c_proj.",
    "decoder.global_stage.position_in.table": "global_block_pos_embed",
    "decoder.global_stage.position_out.table": "decoder_pos_embed",
    "decoder.global_stage.blocks.": "global_blocks.",
    "decoder.head.time_embed.fc1.": "flow_head.net.time_embed.mlp.0.",
    "decoder.head.time_embed.fc2.": "flow_head.net.time_embed.mlp.2.",
    "decoder.head.blocks.": "flow_head.net.res_blocks.",
    "decoder.head.final_modulation.": "flow_head.net.final_layer.adaLN_modulation.1.",
    "decoder.head.final_proj.": "flow_head.net.final_layer.linear.",
    "decoder.head.": "flow_head.net.",
}
# Within a block: start of the release's name -> replacements in the rest of it.
INFIXES = {
    "encoder.layers.": {".ls1.gamma": ".ls1", ".ls2.gamma": ".ls2"},
    "flow_head.net.res_blocks.": {".norm.": ".in_ln.", ".modulation.": ".adaLN_modulation.1."},
}


Parts = tuple[InternViT, MLPBottleneck, PatchFlowDecoder]


def read_official(directory: str | os.PathLike[str]) -> tuple[Parts, dict[str, Any]]:
    """Read a folder in the release's format, on the CPU, in float32.

    Args:
        directory: holds `config.json` and `model.safetensors`, or shards of it with their index.

    Returns:
        The parts with their weights, and the config.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing.
        ValueError: if the config lacks a field or describes another architecture; if a tensor is missing, surplus,
            misshapen or of integers; if there are only pickled weights.
    """
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: give the one that holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    if not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{path} is not a checkpoint of the UniFlow release: it has no {CONFIG_NAME}")
    config = read_json_object(path / CONFIG_NAME)
    _check_config(config, path / CONFIG_NAME)
    tensors = _read_weights(path)
    blocks = sum(config[name] for name in BLOCKS)
    if blocks > len(tensors):  # checked first: a wrong config could ask for billions of them
        raise ValueError(f"the weights of {path} do not fit its config: {len(tensors)} tensors for {blocks} blocks")
    with torch.device("meta"):  # no memory for a model that does not fit
        expected = official_tensors(official_parts(config))
    check_fit(expected, tensors, path)
    refuse_nonfinite(tensors, path)
    parts = official_parts(config)
    for name, part in zip(PART_NAMES, parts, strict=True):
        part.load_state_dict({key: tensors[official_name(f"{name}.{key}")] for key in part.state_dict()})
    return parts, config


def write_official(
    parts: tuple[VisionEncoder, Bottleneck, PixelDecoder],
    latent_statistics: Mapping[str, Any] | None,
    directory: str | os.PathLike[str],
) -> None:
    """Write `config.json` and `model.safetensors` of the release's format into `directory`, made if needed.

    Reading them gives the same tensors, bit for bit, and parts that compute the same. What only training uses
    (`TRAINING_ONLY`) comes back as its default.

    Args:
        parts: encoder, bottleneck and decoder of a tokenizer.
        latent_statistics: the tokenizer's, or None.
        directory: the folder.

    Raises:
        ValueError: naming the settings that the format cannot hold.
    """
    checked = _check_classes(parts)
    config = official_config(checked, latent_statistics)
    with torch.device("meta"):
        expected = official_parts(config)
    _check_settings(checked, expected)
    tensors = official_tensors(checked)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    if kinds != {"float32"}:
        raise ValueError(f"the UniFlow release's format holds float32, not {', '.join(sorted(kinds))}: call .float()")
    write_directory(Path(directory), config, tensors)


def official_parts(config: Mapping[str, Any]) -> Parts:
    """Encoder, bottleneck and decoder that a complete config of the release describes, with random weights."""
    grid = config["image_size"] // config["patch_size"]
    encoder = InternViT(
        weights=None,
        pos_embed_antialias=False,
        depth=config["num_hidden_layers"],
        embed_dim=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        patch_size=config["patch_size"],
        image_size=config["image_size"],
        mlp_ratio=_ratio(config["intermediate_size"], config["hidden_size"]),
    )
    bottleneck = MLPBottleneck(encoder.spec, channels=config["latent_ch"])
    decoder = PatchFlowDecoder(
        bottleneck.spec,
        width=config["hidden_size"],
        global_depth=config["global_blocks_depth"],
        num_heads=GLOBAL_HEADS,
        flow_depth=config["num_decoder_layers"],
        steps=int(config["num_sampling_steps"]),
        pixel_mean=IMAGENET_DEFAULT_MEAN,
        pixel_std=IMAGENET_DEFAULT_STD,
        learned_grid=(grid, grid),
    )
    return encoder, bottleneck, decoder


def official_tensors(parts: Parts) -> dict[str, Tensor]:
    """The tensors of the parts by the release's names."""
    return {official_name(name): tensor for name, tensor in _tensors(parts).items()}


def _tensors(parts: Parts) -> dict[str, Tensor]:
    """The tensors of the parts by their names in `Tokenizer.state_dict()`."""
    named = zip(PART_NAMES, parts, strict=True)
    return {f"{name}.{key}": tensor for name, part in named for key, tensor in part.state_dict().items()}


def official_config(parts: Parts, latent_statistics: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The release's config of these parts; whether it holds all their settings is not checked."""
    encoder, bottleneck, decoder = parts
    spec, arguments = encoder.spec, decoder.init_args
    block: Any = encoder.blocks[0]
    return {
        **WRITTEN,
        **FIXED,
        "hidden_size": spec.embed_dim,
        "vit_hidden_size": spec.embed_dim,
        "llm_hidden_size": spec.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": block.attn.num_heads,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "latent_ch": bottleneck.spec.channels,
        "global_blocks_depth": arguments["global_depth"],
        "num_decoder_layers": arguments["flow_depth"],
        "num_sampling_steps": str(arguments["steps"]),
        # Our own field, which the release's code ignores.
        **({"latent_statistics": latent_statistics} if latent_statistics else {}),
    }


def official_name(name: str) -> str:
    """The release's name of a tensor in `Tokenizer.state_dict()`.

    Raises:
        ValueError: if the release has no such tensor.
    """
    start = next((start for start in PREFIXES if name.startswith(start)), None)
    if start is None:
        raise ValueError(f"the UniFlow release's format has no place for the tensor {name}")
    name = PREFIXES[start] + name.removeprefix(start)
    for block, replacements in INFIXES.items():
        if name.startswith(block):
            for ours, theirs in replacements.items():
                name = name.replace(ours, theirs)
    return name


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    missing = [name for name in (*FIXED, *SIZES) if name not in config]
    if missing:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{path} lacks fields of the UniFlow release's config: {', '.join(missing[:5])}{more}")
    other = [
        f"{name} must be {value!r}, not {config[name]!r}" for name, value in FIXED.items() if config[name] != value
    ]
    for name in SIZES:
        least = 0 if name == "global_blocks_depth" else 1
        # The number of sampling steps is a string in the release's files.
        value = int(config[name]) if name == "num_sampling_steps" and str(config[name]).isdecimal() else config[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            other.append(f"{name} must be a whole number from {least} to {LARGEST}, not {config[name]!r}")
    if not other and config["vit_hidden_size"] != config["hidden_size"]:
        other.append(f"vit_hidden_size must be hidden_size, {config['hidden_size']}, not {config['vit_hidden_size']}")
    if not other and config["image_size"] % config["patch_size"]:
        other.append(f"image_size {config['image_size']} must be a multiple of patch_size {config['patch_size']}")
    if other:
        raise ValueError(f"{path} describes no network of the UniFlow release: {'; '.join(other)}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or of the shards that its index names."""
    if (path / WEIGHTS_NAME).is_file():
        return read_tensors(path / WEIGHTS_NAME)
    if (path / INDEX_NAME).is_file():
        return _read_shards(path)
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise ValueError(
            f"{path} has pickled weights only ({pickles[0]}), which are not read; convert them there first: python -c "
            f'"import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{pickles[0]}', weights_only=True), '{WEIGHTS_NAME}')\""
        )
    raise FileNotFoundError(f"{path} has no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}")


def _read_shards(path: Path) -> dict[str, Tensor]:
    shards = read_json_object(path / INDEX_NAME).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        raise ValueError(f"{path / INDEX_NAME} has no weight_map of tensor names to files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(shards.values())):
        # A name only: an index must not lead to files elsewhere.
        if Path(file).name != file or not (path / file).is_file():
            raise FileNotFoundError(f"{path / INDEX_NAME} names {file}, and there is no such file beside it")
        shard = read_tensors(path / file)
        wrong = sorted({name for name, where in shards.items() if where == file} ^ shard.keys())
        if wrong:
            raise ValueError(f"{path / file} and {INDEX_NAME} do not agree on the tensor {wrong[0]}")
        tensors |= shard
    return tensors


def _check_classes(parts: tuple[VisionEncoder, Bottleneck, PixelDecoder]) -> Parts:
    for part, cls in zip(parts, (InternViT, MLPBottleneck, PatchFlowDecoder), strict=True):
        if type(part) is not cls:
            raise ValueError(f"the UniFlow release's format holds {cls.__name__}, not {type(part).__name__}")
    return cast(Parts, parts)


def _check_settings(parts: Parts, expected: Parts) -> None:
    """Refuse what would not come back: every argument that differs from `expected`, and every surplus tensor."""
    problems = []
    for (kind, ignored), part, other in zip(TRAINING_ONLY.items(), parts, expected, strict=True):
        own, theirs = part_config(part)["init_args"], part_config(other)["init_args"]
        problems += [
            f"{kind}.{name} must be {theirs[name]!r}, not {own[name]!r}"
            for name in own
            if name not in ignored and own[name] != theirs[name]
        ]
    shapes = {name: tensor.shape for name, tensor in _tensors(expected).items()}
    surplus = [name for name, tensor in _tensors(parts).items() if shapes.get(name) != tensor.shape]
    if not problems and surplus:
        problems.append(f"no place for the tensor {surplus[0]}")
    if problems:
        raise ValueError(f"the UniFlow release's format cannot hold this tokenizer: {'; '.join(problems)}")


def _ratio(hidden: int, width: int) -> float:
    """The ratio from which timm computes int(width * ratio) = hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
