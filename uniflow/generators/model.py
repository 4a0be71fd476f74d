"""The model that makes images: condition, generator of latents and tokenizer; and its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from uniflow.conditions import Condition, Conditioning
from uniflow.core.errors import one_line
from uniflow.core.part import build_part, part_config
from uniflow.generators.base import LatentGenerator
from uniflow.generators.cached import latent_identity, take_decoder
from uniflow.generators.space import LatentSpace
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.saving import AllocationLimit, load_strictly, read_directory, write_directory
from uniflow.version import __version__

FORMAT = 1
KIND = "generator"


class Generator(nn.Module):
    """Makes images.

    Args:
        tokenizer: decodes the latents; it needs latent statistics.
        network: makes normalised latents.
        condition: tells the network what to make.
        grid: rows and columns of the tokenizer's latents that the network was trained on.
        space: maps the latents to what the network makes; by default they are the same.

    Raises:
        ValueError: if the tokenizer has no statistics, or its latents are not those of the network.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        network: LatentGenerator,
        condition: Condition,
        grid: tuple[int, int],
        space: LatentSpace | None = None,
    ) -> None:
        super().__init__()
        check_tokenizer(tokenizer, "the tokenizer")
        self.space = LatentSpace(tokenizer.latent_spec) if space is None else space
        if self.space.latent != tokenizer.bottleneck.spec or network.latent != self.space.spec:
            raise ValueError(f"the generator makes {network.latent}, the tokenizer has {tokenizer.bottleneck.spec}")
        network.use_tokenizer(tokenizer)
        self.tokenizer, self.network, self.condition = tokenizer, network, condition
        self.grid = (int(grid[0]), int(grid[1]))
        self._checked_guide: list[Generator] = []  # in a list, so that it is not a part of this module

    @torch.no_grad()
    def sample(
        self,
        values: Any = None,
        count: int | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        autoguide: Generator | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Make images. Each depends on the seed, its number and its condition alone, not on its batch.

        Args:
            values: what each image shall show, such as class numbers (N,) or N texts; None leaves it open.
            count: how many images; as many as `values` by default.
            seed: of all noise.
            first: number of the first image.
            steps: sampler steps; None is the generator's own number.
            guidance: strength of guidance; 1 is none; None is the generator's own.
            autoguide: a weaker generator of the same latents and condition, away from which guidance moves (arXiv
                2406.02507), such as one that was trained for a shorter time; see `check_autoguide`.
            batch_size: images at a time.

        Returns:
            Images (N, 3, H, W), float32 in [0, 1], on the CPU.

        Raises:
            ValueError: if there are no images to make, or a value is not one that the condition knows.
        """
        total = len(values) if count is None and values is not None else (count or 0)
        if total < 1 or (values is not None and len(values) != total):
            given = "no values" if values is None else f"{len(values)} values"
            raise ValueError(f"nothing to sample: give values, or a count of at least 1 (got {given}, count {count})")
        batches = (range(begin, min(begin + batch_size, total)) for begin in range(0, total, batch_size))
        if autoguide is not None and all(autoguide is not checked for checked in self._checked_guide):
            self.check_autoguide(autoguide)
            self._checked_guide = [autoguide]
        options = {"steps": steps, "guidance": guidance}
        images = [self._batch(values, batch, seed, first, autoguide, options) for batch in batches]
        return torch.cat(images)

    def _batch(
        self,
        values: Any,
        rows: range,
        seed: int,
        first: int,
        autoguide: Generator | None,
        options: dict[str, Any],
    ) -> Tensor:
        device = next(self.network.parameters()).device
        chosen = None if values is None else values[rows.start : rows.stop]
        if isinstance(chosen, Tensor):
            chosen = chosen.to(device)
        dropped = torch.full((len(rows),), values is None, device=device)
        conditioning = self.condition(chosen, dropped)
        numbers = range(first + rows.start, first + rows.stop)
        start = start_noise(numbers, seed, (self.network.latent.channels, *self.space.grid(*self.grid))).to(device)
        if autoguide is None:
            latents = self.network.sample(start, conditioning, self.unconditional(len(rows)), **options)
        else:
            weak_told = autoguide.condition(chosen, dropped)
            latents = self.network.sample_autoguided(start, conditioning, autoguide.network, weak_told, **options)
        return decode_latents(self.tokenizer, self.space.inverse(latents), numbers, seed).cpu()

    def check_autoguide(self, weak: Generator) -> None:
        """Refuse a weaker generator that makes other latents, or is told something else.

        Raises:
            ValueError: if its tokenizer's weights, the latents' statistics, the space that it works in, or the
                condition's field are others.
        """
        own, other = latent_identity(self.tokenizer), latent_identity(weak.tokenizer)
        if own != other:
            said = ", ".join(key for key in own if own[key] != other[key])
            raise ValueError(f"the generator to guide by is of another tokenizer ({said} differ)")
        space, weak_space = self.space.state_dict(), weak.space.state_dict()
        if part_config(self.space) != part_config(weak.space) or any(
            not torch.equal(value, weak_space[name].to(value.device)) for name, value in space.items()
        ):
            raise ValueError("the generator to guide by works in another space of the latents")
        if self.condition.field != weak.condition.field:
            fields = [condition.field or "nothing" for condition in (weak.condition, self.condition)]
            raise ValueError(f"the generator to guide by is told {fields[0]}, the one to be guided {fields[1]}")

    def unconditional(self, count: int) -> Conditioning:
        """What stands for no condition, for `count` samples."""
        device = next(self.network.parameters()).device
        return self.condition(None, torch.ones(count, dtype=torch.bool, device=device))

    def config(self) -> dict[str, Any]:
        """Class path and arguments of network, condition and space, and the grid, ready for JSON."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "uniflow_version": __version__,
            "network": part_config(self.network),
            "condition": part_config(self.condition),
            "space": part_config(self.space),
            "grid": list(self.grid),
        }

    def save_pretrained(
        self, directory: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors`, and the tokenizer into the folder `tokenizer`.

        Args:
            directory: the folder; created if needed.
            state_dict: the weights of network and condition; None is the model's own. For models that are sharded.
        """
        tensors = self._weights() if state_dict is None else state_dict
        self.tokenizer.save_pretrained(Path(directory) / "tokenizer")
        write_directory(Path(directory), self.config(), tensors)

    def _weights(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith("tokenizer.")}

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *, text_encoder: str | None = None, decoder: str | None = None
    ) -> Self:
        """Load a folder made by `save_pretrained`, in evaluation mode, on the CPU. Nothing is fetched.

        Args:
            directory: the folder.
            text_encoder: where the text encoder of a `TextCondition` is now; None is where it was in training.
            decoder: a tokenizer of the same encoder and bottleneck, whose decoder takes the place of the saved one.

        Raises:
            FileNotFoundError: if there is no such folder, or a file is missing.
            ValueError: if it holds no generator, its weights do not fit its config, or the decoder is of other latents.
        """
        path = Path(directory)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} is not a generator: it has no config.json")
        config, tensors = read_directory(path)
        grid = config.get("grid")
        # Generators saved before there were spaces work on the latents themselves.
        whole = {"class_path": "uniflow.generators.LatentSpace", "init_args": {}}
        parts = [config.get("condition"), config.get("network"), config.setdefault("space", whole)]
        known = config.get("kind") == KIND and config.get("format") == FORMAT
        if not (known and is_grid(grid) and all(isinstance(part, dict) for part in parts)):
            raise ValueError(f"{path} does not hold a generator of format {FORMAT}: see RUN/generator of a run")
        tokenizer = Tokenizer.from_pretrained(path / "tokenizer")
        if decoder is not None:
            take_decoder(tokenizer, decoder)
        try:
            with AllocationLimit(path):
                moved = {} if text_encoder is None else {"name": text_encoder}
                condition = build_part(config["condition"], Condition, **moved)
                space = build_part(config["space"], LatentSpace, tokenizer.latent_spec)
                network = build_part(config["network"], LatentGenerator, space.spec, condition.spec)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{path}: {one_line(error, 400)}") from error
        loaded = nn.ModuleDict({"network": network, "condition": condition, "space": space})
        load_strictly(loaded, tensors, path)
        return cls(tokenizer, network, condition, (grid[0], grid[1]), space).eval()


def check_tokenizer(tokenizer: Tokenizer, name: str) -> None:
    """Refuse a tokenizer whose latents cannot be normalised.

    Raises:
        ValueError: if it has no latent statistics.
    """
    if tokenizer.latent_statistics is None:
        raise ValueError(f"{name} has no latent statistics, which a generator needs: measure them with `uniflow stats`")


def start_noise(numbers: Sequence[int], seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (len(numbers), *shape), float32 on the CPU: of each number and the seed alone."""
    return torch.stack([torch.randn(shape, generator=_stream(seed, number, 0)) for number in numbers])


def decode_latents(tokenizer: Tokenizer, latents: Tensor, numbers: Sequence[int], seed: int) -> Tensor:
    """Normalised latents (B, C, h, w) -> images (B, 3, H, W) in [0, 1], with decoder noise of each number alone."""
    shape = (3, *(side * tokenizer.patch_size for side in latents.shape[-2:]))
    noise = torch.stack([torch.randn(shape, generator=_stream(seed, number, 1)) for number in numbers])
    return tokenizer.decode(latents, normalized=True, noise=noise.to(latents.device)).float()


def _stream(seed: int, number: int, purpose: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, number, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def is_grid(value: Any) -> TypeGuard[list[int]]:
    """Whether a value of a config is the rows and columns of latents."""
    return (
        isinstance(value, list) and len(value) == 2 and all(type(side) is int and 1 <= side <= 4096 for side in value)
    )
