"""Counts the bytes of live tensors while operators run."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, until they are freed.

    Only what passes the dispatcher is seen: not what a kernel allocates for itself.

    Attributes:
        live: bytes alive now, gradients and casts included.
        gradients: of these, bytes of gradients of the watched parameters.
        casts: of these, bytes of watched parameters in another type, which autocast makes.
        peaks: for each weight of gradients and of casts, the largest sum since `reset` of the bytes alive at a time.
    """

    def __init__(self, weights: Iterable[tuple[float, float]] = ((1, 1),)) -> None:
        super().__init__()
        self.peaks: dict[tuple[float, float], float] = dict.fromkeys(weights, 0)
        self.live = self.gradients = self.casts = 0
        self._known: dict[int, str] = {}
        self._parameters: set[int] = set()
        self._hooks: list[RemovableHandle] = []

    def reset(self) -> None:
        """Begin a new phase: its peaks start with what is alive now."""
        self.peaks = dict.fromkeys(self.peaks, 0)
        self._update()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out tensors that were there before, and stay: else they count once an operator returns a view."""
        self._known |= {tensor.untyped_storage()._cdata: "ignored" for tensor in tensors}

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Tell the gradients and casts of these parameters from all else, and leave out the parameters themselves."""
        for parameter in parameters:
            self.ignore([parameter])
            self._parameters.add(parameter.untyped_storage()._cdata)
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._found_gradient))

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # A number that is read from a tensor without content, such as an optimizer's count of steps: sizes do not
            # depend on it.
            return 1.0 if args[0].is_floating_point() else 1
        result = func(*args, **(kwargs or {}))
        is_cast = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._parameters
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage(), "casts" if is_cast else "")
        return result

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = kind
        # A storage's Python object lives as long as the storage itself, also where only a graph holds it.
        weakref.finalize(storage, self._free, key, size).atexit = False
        self._count(kind, size)
        self._update()

    def _free(self, key: int, size: int) -> None:
        self._count(self._known.pop(key), -size)

    def _found_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        storage = parameter.grad.untyped_storage()
        self._add(storage, "gradients")
        if self._known[storage._cdata] == "":
            self._known[storage._cdata] = "gradients"
            self.gradients += storage.nbytes()

    def _count(self, kind: str, size: int) -> None:
        self.live += size
        if kind == "gradients":
            self.gradients += size
        elif kind == "casts":
            self.casts += size

    def _update(self) -> None:
        other = self.live - self.gradients - self.casts
        for weights, peak in self.peaks.items():
            now = other + weights[0] * self.gradients + weights[1] * self.casts
            if now > peak:
                self.peaks[weights] = now
