"""The tokenizer: encoder, bottleneck and decoder as one model. No Lightning here, and no teacher."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor

from uniflow.bottleneck import Bottleneck
from uniflow.core.errors import one_line
from uniflow.core.imports import import_part
from uniflow.core.part import build_part, own_class, part_config
from uniflow.decoders.base import PixelDecoder
from uniflow.encoders.base import VisionEncoder
from uniflow.layers.grid import pad_to_multiple
from uniflow.pretrained import packaged
from uniflow.tokenizer.card import model_card, write_card
from uniflow.tokenizer.clips import ClipLatents
from uniflow.tokenizer.official import read_official, write_official
from uniflow.tokenizer.saving import (
    FORMAT,
    PART_BASES,
    AllocationLimit,
    fetch_directory,
    load_strictly,
    part_classes,
    read_checkpoint,
    read_directory,
    without_adapters,
    write_directory,
)
from uniflow.tokenizer.tiling import decode_tiled
from uniflow.version import __version__


class Tokenizer(ClipLatents, ModelHubMixin):
    """A unified visual tokenizer: features that understand images, latents that decode back to pixels.

    Images are RGB (B, 3, H, W), uint8 or float in [0, 1], of any size; sides that are not a multiple of the patch size
    are padded on the right and at the bottom by repeating the edge. Latents are images (B, C, h, w). Clips are
    encoded and decoded inside `over_time`; B is then the number of all their frames, and of all their latents.

    Args:
        encoder: pixels -> hidden states.
        bottleneck: hidden states -> latents.
        decoder: latents -> pixels.

    Raises:
        ValueError: if the decoder was made for other latents than the bottleneck gives.
    """

    def __init__(self, encoder: VisionEncoder, bottleneck: Bottleneck, decoder: PixelDecoder) -> None:
        super().__init__()
        if decoder.spec != bottleneck.spec:
            raise ValueError(f"the decoder expects {decoder.spec}, the bottleneck gives {bottleneck.spec}")
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder

    @property
    def parts(self) -> tuple[VisionEncoder, Bottleneck, PixelDecoder]:
        """Encoder, bottleneck and decoder."""
        return self.encoder, self.bottleneck, self.decoder

    @property
    def patch_size(self) -> int:
        """Side in pixels of the image area that one latent stands for."""
        return self.bottleneck.spec.patch_size

    def pad(self, images: Tensor) -> Tensor:
        """Pad the right and bottom edge of (B, 3, H, W) to multiples of the patch size."""
        return pad_to_multiple(images, max(self.patch_size, self.encoder.spec.patch_size))

    def encode(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Images (B, 3, H, W) -> latents (B, C, ceil(H / patch_size), ceil(W / patch_size)).

        Args:
            images: RGB, uint8 or float in [0, 1].
            normalize: whether to bring each channel to mean 0 and variance 1 by the stored latent statistics; the
                result is at least float32.

        Raises:
            ValueError: if the images are not RGB batches, or there are no statistics to normalise with.
        """
        latents, _ = self.bottleneck(self.encoder(self.pad(images)))
        return self.normalize_latents(latents) if normalize else latents

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        clamp: bool = True,
        normalized: bool = False,
        tile: int | None = None,
        overlap: int | None = None,
        global_context: bool = False,
    ) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, h * patch_size, w * patch_size) in [0, 1].

        Args:
            latents: what `encode` gave, or a generator made.
            steps: sampler steps of a flow decoder; None is the decoder's own number.
            noise: standard normal start, shaped as the images, in place of a drawn one.
            generator: source of the drawn noise.
            clamp: whether to cut the result to [0, 1].
            normalized: whether the latents are those of `encode(normalize=True)`.
            tile, overlap, global_context: as for `decode_tiled`; a `tile` of None decodes all at once.

        Raises:
            ValueError: for latents or noise of another shape or number, without latent statistics, or a bad overlap.
        """
        options: dict[str, Any] = {"steps": steps, "noise": noise, "generator": generator}
        if tile is not None:
            options |= {"overlap": overlap, "global_context": global_context, "clamp": clamp, "normalized": normalized}
            return self.decode_tiled(latents, tile=tile, **options)
        if overlap is not None or global_context:
            raise ValueError("overlap and global_context are of tiles: give their side, tile")
        images = self.decoder.decode(self._decodable(latents, normalized), **options)
        return images.clamp(0, 1) if clamp else images

    def decode_tiled(
        self,
        latents: Tensor,
        *,
        tile: int,
        overlap: int | None = None,
        global_context: bool = False,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        clamp: bool = True,
        normalized: bool = False,
    ) -> Tensor:
        """`decode` by overlapping tiles: large images in bounded memory. See `uniflow.tokenizer.tiling`.

        Args:
            latents: (B, C, h, w), as for `decode`.
            tile: side in latents of the tiles, which are decoded one after another.
            overlap: latents that neighbouring tiles share; None is a quarter of the tile.
            global_context: whether the decoder's global part sees the whole image at once.
            steps, noise, generator, clamp, normalized: as for `decode`.

        Returns:
            Images (B, 3, h * patch_size, w * patch_size) in [0, 1].

        Raises:
            ValueError: as for `decode`.
        """
        latents = self._decodable(latents, normalized)
        options: dict[str, Any] = {"steps": steps, "noise": noise, "generator": generator}
        options |= {"overlap": overlap, "global_context": global_context}
        images = decode_tiled(self.decoder, latents, tile=tile, **options)
        return images.clamp(0, 1) if clamp else images

    def _decodable(self, latents: Tensor, normalized: bool) -> Tensor:
        """Checked latents (B, C, h, w), as the decoder reads them: one for each frame."""
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents must be (B, {self.latent_channels}, h, w), got {tuple(latents.shape)}")
        return self.bottleneck.to_frames(self.denormalize_latents(latents) if normalized else latents)

    def indices(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> codebook indices from 0 to codebook_size - 1, int64, (B, h, w, K) for K codebooks.

        Raises:
            ValueError: if the bottleneck is continuous, or the images are not RGB batches.
        """
        return self.bottleneck.indices(self.encoder(self.pad(images)))

    def decode_indices(self, indices: Tensor, **options: Any) -> Tensor:
        """Codebook indices (B, h, w, K), as `indices` gives them -> images, as `decode` with the same `options`.

        Raises:
            ValueError: if the bottleneck is continuous, for indices that do not fit, for `normalized`, or as `decode`.
        """
        if options.get("normalized"):
            raise ValueError("decode_indices takes no normalized=True: the latents of indices are not normalised")
        return self.decode(self.bottleneck.from_indices(indices), **options)

    def reconstruct(
        self,
        images: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        global_context: bool = False,
    ) -> Tensor:
        """Encode and decode `images` (B, 3, H, W): float images in [0, 1] of the same size. See `decode`."""
        tiles: dict[str, Any] = {"tile": tile, "overlap": overlap, "global_context": global_context}
        decoded = self.decode(self.encode(images), steps=steps, noise=noise, generator=generator, **tiles)
        return decoded[..., : images.shape[-2], : images.shape[-1]]

    def forward(self, images: Tensor) -> Tensor:
        """`reconstruct` with the decoder's own number of steps."""
        return self.reconstruct(images)

    def features(self, images: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Hidden states of chosen blocks as feature maps.

        Args:
            images: (B, 3, H, W).
            layers: indices of blocks, 0 = first, -1 = last.

        Returns:
            For each of `layers` the patch tokens (B, D, h, w).

        Raises:
            ValueError: if there is no such block.
        """
        depth = self.encoder.spec.num_layers
        for layer in layers:
            if not -depth <= layer < depth:
                raise ValueError(f"the encoder has blocks 0 to {depth - 1}, there is no block {layer}")
        output = self.encoder(self.pad(images))
        return [output.feature_map(layer) for layer in layers]

    def config(self) -> dict[str, Any]:
        """Class path and arguments of each part, and the latent statistics if there are any, ready for JSON."""
        statistics = self.latent_statistics
        return {
            "format": FORMAT,
            "uniflow_version": __version__,
            "encoder": part_config(self.encoder),
            "bottleneck": part_config(self.bottleneck),
            "decoder": part_config(self.decoder),
            **({"latent_statistics": statistics} if statistics else {}),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A tokenizer of the architecture that `config` describes, with random weights; nothing is fetched.

        Raises:
            ValueError: if a part is missing, cannot be imported, or does not take its arguments, or if the latent
                statistics do not fit the latents.
        """
        part_classes(config)  # all are checked before the first is built
        encoder = _build_unloaded(config["encoder"])
        bottleneck = build_part(config["bottleneck"], Bottleneck, encoder.spec)
        tokenizer = cls(encoder, bottleneck, build_part(config["decoder"], PixelDecoder, bottleneck.spec))
        tokenizer.load_latent_statistics(config)
        return tokenizer

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write `config.json`, `model.safetensors` and the card `README.md` into a folder.

        If there is a card already, only its generated part is replaced.

        Args:
            save_directory: the folder; created if needed.
            config: must be None: a tokenizer has its own config. The mixin's `push_to_hub` passes this argument.
            repo_id: where to push it; the folder's name by default.
            push_to_hub: whether to upload it too.
            state_dict: the weights to write; None is the model's own. For models that are sharded.
            model_card_kwargs: `recipe` and `results` for the card, see `uniflow.tokenizer.card.model_card`.
            **push_to_hub_kwargs: of `push_to_hub`.

        Returns:
            The address of the commit on the hub if it was pushed, else None.

        Raises:
            TypeError: if a `config` is given.
        """
        if config is not None:
            raise TypeError("a tokenizer is saved with its own config: leave the argument config out")
        directory, card = Path(save_directory), self.generate_model_card(**(model_card_kwargs or {}))
        tensors = self.state_dict() if state_dict is None else state_dict
        on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        classes = {name: own_class(part) for name, part in zip(PART_BASES, self.parts, strict=True)}
        write_directory(directory, *without_adapters(self.config(), on_cpu, classes))
        write_card(directory, str(card))
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or directory.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def generate_model_card(
        self, recipe: Mapping[str, Any] | None = None, results: Mapping[str, Any] | None = None
    ) -> ModelCard:
        """The card, see `uniflow.tokenizer.card.model_card`."""
        return ModelCard(model_card(self.parts, recipe, results))

    @classmethod
    def from_official(cls, directory: str | os.PathLike[str]) -> Self:
        """Load a checkpoint in the public UniFlow release's format, in evaluation mode, on the CPU.

        Args:
            directory: the folder with its `config.json` and `model.safetensors` (one file, or shards with an index).

        Raises:
            FileNotFoundError: if there is no such folder, or a file is missing.
            ValueError: if its config describes another architecture, or its weights do not fit it.
        """
        parts, config = read_official(directory)
        tokenizer = cls(*parts)
        tokenizer.load_latent_statistics(config)
        return tokenizer.eval()

    def save_official(self, directory: str | os.PathLike[str]) -> None:
        """Write the public UniFlow release's format into `directory`; `ValueError` names what it cannot hold."""
        write_official(self.parts, self.latent_statistics, directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin takes further arguments for the constructor
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load a tokenizer, in evaluation mode, in float32, on the CPU. No teacher is built, no code is loaded.

        A `path` that exists is read, so a folder called `embedded` wins over the tokenizer in the package. Else, but
        for "embedded", it is looked up on Hugging Face's hub, or offline in its cache; only `config.json`
        and `model.safetensors` are fetched. For your own parts see `uniflow.core.imports.import_part`.

        Args:
            path: a directory made by `save_pretrained`, a checkpoint of `uniflow fit`, "embedded", the small tokenizer
                in this package (`uniflow.pretrained`), or "organisation/name" on the hub; of a checkpoint with
                averaged weights (EMA) these are taken.
            revision: branch, tag or commit on the hub.
            cache_dir: folder of the hub's cache.
            token: of a private repository on the hub.
            force_download: fetch what the cache holds already.
            local_files_only: look into the cache only.

        Raises:
            FileNotFoundError: if there is nothing at `path`, and nothing of that name on the hub.
            ValueError: if it holds no tokenizer, or its weights do not fit its config.
            OSError: if it cannot be read or fetched.
        """
        source = Path(path)
        if not source.exists():
            source = packaged(os.fspath(path)) or fetch_directory(
                os.fspath(path),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        config, tensors = read_directory(source) if source.is_dir() else read_checkpoint(source)
        try:
            with AllocationLimit(source):
                config, tensors = without_adapters(config, tensors)
            with AllocationLimit(source):
                tokenizer = cls.from_config(config)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{path}: {one_line(error, 400)}") from error
        load_strictly(tokenizer, tensors, source)
        return tokenizer.eval()


def _build_unloaded(config: Mapping[str, Any]) -> VisionEncoder:
    """The encoder that `config` describes, with random weights."""
    unloaded = import_part(config, VisionEncoder).unloaded_arguments()
    encoder = build_part(config, VisionEncoder, **unloaded)
    given = config.get("init_args", {})
    encoder.init_args |= {name: given.get(name) for name in unloaded}  # where the weights came from stays on record
    return encoder
