"""Low-rank adaptation (LoRA) of encoders, through peft: small trained matrices beside frozen linear layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from uniflow.layers.precision import full_dtype

LORA_ARGUMENTS = ("lora_rank", "lora_alpha", "lora_targets")
# peft's names in the layer that replaces a linear one.
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def lora_arguments(
    tune: str | int, lora_rank: int | None, lora_alpha: float | None, lora_targets: Sequence[str] | None
) -> dict[str, Any]:
    """An encoder's arguments for adapters with their defaults filled in, as `set_trainable` takes them and `init_args`
    records them; empty unless `tune` is `lora`.

    Args:
        tune: the encoder's.
        lora_rank: rank r of the matrices; None is 16.
        lora_alpha: the adapters' product is scaled by alpha / r; None is r.
        lora_targets: last names of the linear layers that are adapted; None is all in the blocks.

    Raises:
        ValueError: if one of them is given and `tune` is something else, or is out of its range.
        ImportError: if peft is not installed.
    """
    given = dict(zip(LORA_ARGUMENTS, (lora_rank, lora_alpha, lora_targets), strict=True))
    if tune != "lora":
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} is for tune 'lora', and tune is {tune!r}: set tune to lora, or {name} to null"
                )
        return {}
    rank = 16 if lora_rank is None else lora_rank
    alpha = float(rank) if lora_alpha is None else lora_alpha
    _peft()
    return {"lora_rank": rank, "lora_alpha": alpha, "lora_targets": lora_targets}


def add_adapters(
    model: nn.Module,
    blocks: nn.ModuleList,
    lora_rank: int,
    lora_alpha: float,
    lora_targets: Sequence[str] | None = None,
) -> None:
    """Put adapters into `model` and freeze everything else: y = W x + b + alpha / r B A x (arXiv 2106.09685).

    A (r, in) is random and B (out, r) zero, so the model's outputs are what they were.

    Args:
        model: the whole encoder; changed in place.
        blocks: its transformer blocks.
        lora_rank: r.
        lora_alpha: alpha.
        lora_targets: last names of the linear layers to adapt, such as `qkv`; None is all in the blocks.

    Raises:
        ValueError: if the blocks have no such layer.
        ImportError: if peft is not installed.
    """
    inside = set(blocks.modules())
    # Not subclasses: nn.MultiheadAttention reads the weight of its output layer directly and would skip an adapter.
    candidates = [name for name, module in model.named_modules() if type(module) is nn.Linear and module in inside]
    kinds = sorted({name.rpartition(".")[2] for name in candidates})
    wanted = kinds if lora_targets is None else lora_targets
    missing = [name for name in wanted if name not in kinds]
    if missing or not wanted:
        what = f"no linear layer {missing[0]!r}" if missing else "no linear layer to adapt"
        raise ValueError(f"lora_targets: the blocks have {what}; theirs are {', '.join(kinds) or 'none'}")
    peft = _peft()
    names = [name for name in candidates if name.rpartition(".")[2] in wanted]
    peft.inject_adapter_in_model(peft.LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules=names), model)


def plain_copy(module: ModuleT) -> ModuleT:
    """A copy without adapters. If there are any, it shares the parameters that are not trained, so that a student and
    its teacher hold them once; else it is a deep copy.
    """
    adapted = [layer for layer in module.modules() if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")]
    # deepcopy takes these as already copied: frozen parameters themselves, and for each adapted layer the plain one.
    memo: dict[int, Any] = {}
    if adapted:
        memo |= {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
    for layer in adapted:
        memo[id(layer)] = copy.deepcopy(layer.base_layer, memo)
    return copy.deepcopy(module, memo)


def merge_part(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`merge_adapters` of an encoder whose `tune` is `lora`, and its arguments with `tune` `full`; others as they are.

    Args:
        arguments: the encoder's `init_args`, from a file that may hold anything.
        tensors: its state dict; not changed.

    Raises:
        ValueError: if `lora_alpha` is not a number, or adapters and layers do not fit.
    """
    if arguments.get("tune") != "lora":
        return dict(arguments), dict(tensors)
    alpha = arguments.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"the config of an encoder with tune 'lora' needs a number as its lora_alpha, not {alpha!r}")
    plain = {name: None if name in LORA_ARGUMENTS else value for name, value in arguments.items()}
    return plain | {"tune": "full"}, merge_adapters(tensors, alpha)


def merge_adapters(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """A state dict with the adapters in it merged into plain weights under plain names; peft is not needed.

    Args:
        tensors: a module's state dict; not changed.
        alpha: of the adapters.

    Returns:
        W + alpha / r B A for each adapted layer, computed and kept in at least float32; the rest as it is.

    Raises:
        ValueError: if adapters and layers do not fit.
    """
    layers = {name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)}
    merged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, base, parameter = name.rpartition(_BASE)
        if layer in layers and base:
            merged[f"{layer}.{parameter}"] = _merge(layer, tensors, alpha) if parameter == "weight" else tensor
        elif not any(name.endswith(end) and name.removesuffix(end) in layers for end in (_DOWN, _UP)):
            merged[name] = tensor
    return merged


def _merge(layer: str, tensors: Mapping[str, Tensor], alpha: float) -> Tensor:
    weight, down, up = tensors[f"{layer}{_BASE}weight"], tensors[layer + _DOWN], tensors.get(layer + _UP)
    rank = down.shape[0]
    if up is None or rank == 0 or (up.ndim, down.ndim) != (2, 2) or up.shape[1] != rank:
        raise ValueError(f"the adapters of {layer} do not form a pair")
    if weight.shape != (up.shape[0], down.shape[1]):
        raise ValueError(f"the adapters of {layer} do not fit its weight {tuple(weight.shape)}")
    dtype = full_dtype(weight.dtype)
    with torch.no_grad():
        return torch.addmm(weight.to(dtype), up.to(dtype), down.to(dtype), alpha=alpha / rank)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("tune 'lora' needs peft: pip install uniflow[lora]") from error
    return peft
