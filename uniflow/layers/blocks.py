"""Find a model's repeated blocks, and checkpoint or compile them one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# How many versions of one class's block the compiler may keep: sizes, precisions, with and without gradients.
COMPILED_VERSIONS = 64
# Of activations: none, those that are cheap to compute again, or all within a block.
Checkpointing = bool | Literal["selective"]


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost repeated blocks of a model: the members of each `nn.ModuleList`, and of each `nn.Sequential` whose
    members are all of one class and have children. Blocks without parameters are left out.

    This finds the transformer blocks of timm's and transformers' models and of this project's decoders.
    """
    blocks: list[nn.Module] = []
    for child in module.children():
        members = list(child.children())
        is_list = isinstance(child, nn.ModuleList)
        if members and (is_list or (isinstance(child, nn.Sequential) and _alike(members))):
            blocks += [member for member in members if any(True for _ in member.parameters())]
        else:
            blocks += find_blocks(child)
    return blocks


def _alike(members: list[nn.Module]) -> bool:
    return len({type(member) for member in members}) == 1 and any(True for _ in members[0].children())


def checkpoint_blocks(blocks: list[nn.Module], mode: Checkpointing = True) -> None:
    """Let each block compute its activations again in the backward pass (arXiv 1604.06174).

    Args:
        blocks: modules whose `forward` is called through the module.
        mode: True: a block keeps only its input. "selective": it keeps the results of its linear layers and of fused
            attention, too, and computes only what is cheap again: norms, activations, written-out attention
            (arXiv 2205.05198). False: nothing is changed.

    Raises:
        ValueError: if `mode` is something else.
    """
    if mode is False:
        return
    if mode not in _CHECKPOINTED:
        raise ValueError(f"activation_checkpointing must be true, false or 'selective', not {mode!r}")
    for block in blocks:
        _replace_forward(block, _CHECKPOINTED[mode])


def compile_blocks(blocks: list[nn.Module], **options: Any) -> None:
    """Compile the forward pass of each block, as one graph without a break, when it is first called.

    Parameters keep their names, and blocks of one class share their compiled code. From the second input size on, the
    code is made for any size.

    Args:
        blocks: modules whose `forward` is called through the module.
        **options: of `torch.compile`, such as `backend` and `mode`.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VERSIONS)
    for block in blocks:
        replaced = block.__dict__.get("forward")
        forward = replaced.__func__ if isinstance(replaced, MethodType) else type(block).forward
        _replace_forward(block, _compiled(forward, tuple(sorted(options.items()))))


def restore_blocks(module: nn.Module) -> None:
    """Undo `checkpoint_blocks` and `compile_blocks` in a whole model."""
    for block in _changed(module):
        del block.__dict__["forward"]


def _changed(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if getattr(m.__dict__.get("forward"), "__func__", None) in _REPLACEMENTS)


_REPLACEMENTS: set[Callable[..., Any]] = set()


def _replace_forward(block: nn.Module, forward: Callable[..., Any]) -> None:
    # A bound method, which deepcopy binds to the copy.
    block.__dict__["forward"] = MethodType(forward, block)
    _REPLACEMENTS.add(forward)


def _checkpointed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(self).forward
    if not torch.is_grad_enabled():
        return forward(self, *args, **kwargs)
    return checkpoint(forward, self, *args, use_reentrant=False, **kwargs)


def _checkpointed_selectively(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(self).forward
    if not torch.is_grad_enabled():
        return forward(self, *args, **kwargs)
    contexts = functools.partial(create_selective_checkpoint_contexts, _keep_products)
    return checkpoint(forward, self, *args, use_reentrant=False, context_fn=contexts, **kwargs)


_CHECKPOINTED: dict[Any, Callable[..., Any]] = {True: _checkpointed, "selective": _checkpointed_selectively}


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    aten = torch.ops.aten
    kept = operator in (aten.mm.default, aten.addmm.default, aten.convolution.default)
    if kept or operator.name().startswith("aten::_scaled_dot_product"):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _compiled(forward: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return torch.compile(forward, fullgraph=True, **dict(options))
