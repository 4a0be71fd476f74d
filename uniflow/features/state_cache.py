"""Hidden states of a frozen encoder, kept on disk by the pixels that they are of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uniflow.core.disk import is_full
from uniflow.core.numbers import CheckedNumbers, PositiveFloat
from uniflow.core.specs import EncoderOutput, EncoderSpec
from uniflow.metrics.identity import image_digests


@dataclass(frozen=True)
class StatesNeeded:
    """Which tensors of an `EncoderOutput` are kept.

    Attributes:
        layers: blocks, 0 to L - 1; L stands for the embeddings.
        prefix: whether class and register tokens of these blocks are kept, too.
    """

    layers: tuple[int, ...]
    prefix: bool = False


class StateCache(CheckedNumbers):
    """Computes the hidden states of each crop once: where a crop comes again, the frozen encoder is not run.

    That pays where crops repeat: set `crops_per_image` of the data. A tokenizer whose encoder is frozen then trains
    bottleneck and decoder alone; one whose encoder is trained is spared the teacher.

    States are found by the crop's pixels, so no change of the data gives wrong ones. What else they depend on (weights,
    layers, precision, image size) names a folder of its own. Processes and runs may share all of it at the same time.

    Args:
        folder: where the states are kept, a safetensors file for each crop. Delete it when you no longer need it.
        dtype: "exact" keeps them as the encoder gives them; the others take half the space of float32.
        limit_gb: gigabytes (10^9 bytes) that the states of one kind may take; further crops are computed each time.
    """

    def __init__(
        self,
        folder: str,
        dtype: Literal["exact", "bfloat16", "float16"] = "exact",
        limit_gb: PositiveFloat = 50.0,
    ) -> None:
        self.root, self.dtype, self.limit_gb = Path(folder).expanduser(), dtype, limit_gb
        self.asked = self.found = 0
        self._identity: dict[str, Any] | None = None
        self._folders: dict[str, _Folder] = {}

    def identify(self, **identity: Any) -> None:
        """Say, before the first use, what the states depend on besides the pixels; plain values, ready for JSON."""
        self._identity = identity

    @property
    def share_found(self) -> float:
        """Share of the images so far that did not have to be computed, in [0, 1]."""
        return self.found / max(1, self.asked)

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        encoder: Callable[[Tensor], EncoderOutput],
        spec: EncoderSpec,
        needed: StatesNeeded,
        agree: Callable[[bool], bool] = bool,
    ) -> EncoderOutput:
        """What `encoder` gives for images, from disk if all of them are there, else computed and then kept.

        Args:
            images: (B, 3, H, W), as the encoder takes them.
            encoder: the frozen network.
            spec: of the encoder.
            needed: the tensors that are used. The others are on the device "meta" in a result from disk, so that
                computing with them raises.
            agree: whether any process has to compute, given whether this one has to: a sharded encoder is run by all
                processes or by none.

        Raises:
            RuntimeError: if `identify` was not called.
        """
        folder = self._folder(images, needed)
        digests = image_digests(images)
        states = folder.read(digests)
        self.asked += len(digests)
        if agree(states is None):
            output = encoder(images)
            folder.write(digests, dict(_named(output, needed)), self.dtype)
            return output
        assert states is not None
        self.found += len(digests)
        return _output({name: state.to(images.device) for name, state in states.items()}, images, spec)

    def _folder(self, images: Tensor, needed: StatesNeeded) -> _Folder:
        if self._identity is None:
            raise RuntimeError("StateCache.identify has to be called before encode")
        settings = {
            **self._identity,
            "layers": sorted(needed.layers),
            "prefix": needed.prefix,
            "kept as": self.dtype,
            "images": [*images.shape[1:], str(images.dtype)],
        }
        text = json.dumps(settings, sort_keys=True, indent=1)
        if text not in self._folders:
            path = self.root / hashlib.sha256(text.encode()).hexdigest()[:16]
            self._folders[text] = _Folder(path, text, int(self.limit_gb * 1e9))
        return self._folders[text]


class _Folder:
    """The states of one kind: a file for each crop, written in one step and never changed."""

    def __init__(self, path: Path, settings: str, limit: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        _place(path / "settings.json", lambda new: new.write_text(settings + "\n"))
        self.path, self.limit = path, limit
        self.size = sum(entry.stat().st_size for entry in os.scandir(path))
        self.full = False

    def read(self, digests: list[str]) -> dict[str, Tensor] | None:
        """The batch's states by name, (B, tokens, D) each; None if those of any image are not there."""
        try:
            each = [_load(self._file(digest)) for digest in digests]
        except (FileNotFoundError, SafetensorError, KeyError):  # one that a power cut has damaged is made again
            return None
        return {name: torch.stack([states[name] for states in each]) for name in each[0]}

    def write(self, digests: list[str], states: dict[str, Tensor], dtype: str) -> None:
        """Keep the states (B, tokens, D) of a batch in `dtype`, "exact" as they are, as far as there is room."""
        types = {name: str(state.dtype).removeprefix("torch.") for name, state in states.items()}
        states = {name: state.to("cpu", _dtype(types[name], dtype)) for name, state in states.items()}
        for position, digest in enumerate(digests):
            if self.full:
                return
            own = {name: state[position].contiguous() for name, state in states.items()}
            self.size += sum(state.nbytes for state in own.values())
            self.full = self.size > self.limit
            if self.full:
                self._warn(f"limit_gb ({self.limit / 1e9:g}) is used up; raise it, or lower the data's crops_per_image")
                return
            self._save(digest, own, types)

    def _save(self, digest: str, states: dict[str, Tensor], types: dict[str, str]) -> None:
        try:
            _place(self._file(digest), lambda new: save_file(states, new, types))
        except (OSError, SafetensorError) as error:
            if not is_full(error, self.path):
                raise
            self.full = True
            self._warn("there is no space left on its disk")

    def _file(self, digest: str) -> Path:
        return self.path / f"{digest}.safetensors"

    def _warn(self, why: str) -> None:
        rank_zero_warn(f"StateCache: {self.path}: {why}. Further crops are computed each time.")


def _place(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file in one step; several processes may write the same one at the same time."""
    new = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Tensor]:
    """The states of one crop, (tokens, D) each, in the types in which they were computed."""
    with safe_open(path, "pt") as file:
        types = file.metadata() or {}
        return {name: file.get_tensor(name).to(_dtype(types[name])) for name in file.keys()}  # noqa: SIM118


def _dtype(computed: str, kept: str = "exact") -> torch.dtype:
    return getattr(torch, computed if kept == "exact" else kept)


def _named(output: EncoderOutput, needed: StatesNeeded) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are needed, as far as the encoder gives them, with the names that they have on disk."""
    depth = len(output.hidden_states)
    for layer in needed.layers:
        if layer < depth:
            yield f"hidden_states.{layer}", output.hidden_states[layer]
            if needed.prefix:
                yield f"prefix_tokens.{layer}", output.prefix_tokens[layer]
        elif output.embeddings is not None:
            yield "embeddings", output.embeddings


def _output(states: dict[str, Tensor], images: Tensor, spec: EncoderSpec) -> EncoderOutput:
    """An `EncoderOutput` of named tensors; what is not among them has no values."""
    grid = (images.shape[-2] // spec.patch_size, images.shape[-1] // spec.patch_size)
    batch, dtype = len(images), next(iter(states.values())).dtype

    def state(name: str, tokens: int) -> Tensor:
        missing = torch.empty(batch, tokens, spec.embed_dim, dtype=dtype, device="meta")
        return states.get(name, missing)

    layers = range(spec.num_layers)
    return EncoderOutput(
        tuple(state(f"hidden_states.{layer}", grid[0] * grid[1]) for layer in layers),
        tuple(state(f"prefix_tokens.{layer}", spec.num_prefix_tokens) for layer in layers),
        grid,
        states.get("embeddings"),
    )
