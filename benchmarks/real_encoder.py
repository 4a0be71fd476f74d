"""DINOv2-S/14 with its real weights in timm's names, out of an ONNX file of a network that was built on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCKS, WIDTH, TOKENS = 12, 384, 37 * 37
BACKBONE = "backbone."


def encoder_from_onnx(content: bytes) -> dict[str, Tensor]:
    """The encoder's tensors, float32, under timm's names.

    Args:
        content: an ONNX file, whose backbone has the names of transformers' `Dinov2Model`.

    Raises:
        ValueError: if onnx is not installed, or the file has not got what it should have.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ValueError("the encoder is read out of an ONNX file: pip install onnx") from error
    graph = onnx.load_model_from_string(content).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    try:
        return _in_timms_names(_weights(graph, arrays), _position(arrays))
    except (KeyError, StopIteration) as error:
        raise ValueError(f"the encoder's ONNX file has no {error}: it is another network") from error


def _weights(graph: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backbone's tensors by name; matrices, whose names the export has lost, by the place where they are used."""
    weights = {name.removeprefix(BACKBONE): array for name, array in arrays.items() if name.startswith(BACKBONE)}
    for node in graph.node:
        if node.op_type != "MatMul" or not node.name.startswith("/backbone/"):
            continue
        place = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
        for name in node.input:
            if name in arrays and arrays[name].ndim == 2:
                weights[f"{place}.weight"] = arrays[
                    name
                ].T  # a product from the right, where a layer's is from the left
    return weights


def _position(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The position embedding of the class token and the patches, which the export has taken apart."""
    patches = next(array for array in arrays.values() if array.shape == (1, TOKENS, WIDTH))
    anonymous = (array for name, array in arrays.items() if name.startswith("onnx::"))
    return np.concatenate([next(array for array in anonymous if array.shape == (1, 1, WIDTH)), patches], axis=1)


def _in_timms_names(weights: Mapping[str, np.ndarray], position: np.ndarray) -> dict[str, Tensor]:
    found = {
        "cls_token": weights["embeddings.cls_token"],
        "pos_embed": position,
        "patch_embed.proj.weight": weights["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": weights["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": weights["layernorm.weight"],
        "norm.bias": weights["layernorm.bias"],
    }
    for number in range(BLOCKS):
        theirs, ours = f"encoder.layer.{number}.", f"blocks.{number}."
        for kind in ("weight", "bias"):
            parts = [weights[f"{theirs}attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{ours}attn.qkv.{kind}"] = np.concatenate(parts)
            found[f"{ours}attn.proj.{kind}"] = weights[f"{theirs}attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{ours}{name}.{kind}"] = weights[f"{theirs}{name}.{kind}"]
        for scale in ("1", "2"):
            found[f"{ours}ls{scale}.gamma"] = weights[f"{theirs}layer_scale{scale}.lambda1"]
    return {name: torch.from_numpy(np.array(array, dtype=np.float32, order="C")) for name, array in found.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal digits, of float32 tensors with their names and shapes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].numpy()
        total.update(f"{name} {tuple(array.shape)} ".encode() + array.astype("<f4").tobytes())
    return total.hexdigest()
