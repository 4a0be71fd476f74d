"""The tokenizer: encoder, bottleneck and decoder as one model. No Lightning here, and no teacher."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.bottleneck import Bottleneck
from uniflow.decoders.base import PixelDecoder
from uniflow.encoders.base import VisionEncoder
from uniflow.part import build_part, import_part, part_config
from uniflow.saving import CONFIG_NAME, load_strictly, read_checkpoint, read_directory, write_directory
from uniflow.version import __version__

FORMAT = 1


class Tokenizer(nn.Module):
    """A unified visual tokenizer: features that understand images, latents that decode back to pixels.

    Images are RGB (B, 3, H, W), uint8 or float in [0, 1], of any size; sides that are no multiple of the patch size
    are padded on the right and at the bottom by repeating the edge. Latents are images (B, C, h, w).

    Args:
        encoder: pixels -> hidden states.
        bottleneck: last hidden state -> latents.
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
    def patch_size(self) -> int:
        """Side in pixels of the image area that one latent stands for."""
        return self.bottleneck.spec.patch_size

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return self.bottleneck.spec.channels

    def pad(self, images: Tensor) -> Tensor:
        """Pad the right and bottom edge of (B, 3, H, W) to multiples of the patch size."""
        multiple = max(self.patch_size, self.encoder.spec.patch_size)
        right, bottom = -images.shape[-1] % multiple, -images.shape[-2] % multiple
        if not (right or bottom):
            return images
        # Padding by repetition is not implemented for integers; float32 holds them exactly.
        padded = F.pad(images if images.is_floating_point() else images.float(), (0, right, 0, bottom), "replicate")
        return padded.to(images.dtype)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> latents (B, C, ceil(H / patch_size), ceil(W / patch_size)).

        Raises:
            ValueError: if the images are not RGB batches.
        """
        latents, _ = self.bottleneck(self.encoder(self.pad(images)).feature_map())
        return latents

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int = 1,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        clamp: bool = True,
    ) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, h * patch_size, w * patch_size) in [0, 1].

        Args:
            latents: what `encode` gave, or a generator made.
            steps: sampler steps of a flow decoder.
            noise: standard normal start, shaped as the images, in place of a drawn one.
            generator: source of the drawn noise.
            clamp: whether to cut the result to [0, 1].

        Raises:
            ValueError: if the latents are not (B, C, h, w), the noise is misshapen, or there is no step.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents must be (B, {self.latent_channels}, h, w), got {tuple(latents.shape)}")
        images = self.decoder.decode(latents, steps=steps, noise=noise, generator=generator)
        return images.clamp(0, 1) if clamp else images

    def reconstruct(
        self,
        images: Tensor,
        *,
        steps: int = 1,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Encode and decode `images` (B, 3, H, W): float images in [0, 1] of the same size."""
        decoded = self.decode(self.encode(images), steps=steps, noise=noise, generator=generator)
        return decoded[..., : images.shape[-2], : images.shape[-1]]

    def forward(self, images: Tensor) -> Tensor:
        """`reconstruct` in one step."""
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
        """Class path and arguments of each part, ready for JSON."""
        return {
            "format": FORMAT,
            "uniflow_version": __version__,
            "encoder": part_config(self.encoder),
            "bottleneck": part_config(self.bottleneck),
            "decoder": part_config(self.decoder),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A tokenizer of the architecture that `config` describes, with random weights; nothing is fetched.

        Raises:
            ValueError: if a part is missing, cannot be imported, or does not take its arguments.
        """
        if config.get("format") != FORMAT:
            raise ValueError(f"this uniflow reads tokenizers of format {FORMAT}, not {config.get('format')!r}")
        for part in ("encoder", "bottleneck", "decoder"):
            if not isinstance(config.get(part), Mapping):
                raise ValueError(f"the tokenizer's config names no {part}")
        encoder_class = import_part(config["encoder"], VisionEncoder)
        takes_weights = "weights" in inspect.signature(encoder_class).parameters
        encoder = build_part(config["encoder"], VisionEncoder, **({"weights": None} if takes_weights else {}))
        bottleneck = build_part(config["bottleneck"], Bottleneck, encoder.spec)
        return cls(encoder, bottleneck, build_part(config["decoder"], PixelDecoder, bottleneck.spec))

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into `directory`, which is made if need be."""
        write_directory(Path(directory), self.config(), self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> Self:
        """Load a tokenizer, in evaluation mode, on the CPU. Nothing is downloaded, no teacher is built.

        Args:
            path: a directory made by `save_pretrained`, or a checkpoint of `uniflow fit`; of a checkpoint with averaged
                weights (EMA) these are taken.

        Raises:
            FileNotFoundError: if there is nothing at `path`.
            ValueError: if it holds no tokenizer, or its weights do not fit its config.
        """
        path = Path(path)
        if path.is_dir():
            config, tensors = read_directory(path)
        elif path.is_file():
            config, tensors = read_checkpoint(path)
        else:
            raise FileNotFoundError(f"no tokenizer at {path}: give a directory with {CONFIG_NAME}, or a checkpoint")
        tokenizer = cls.from_config(config)
        load_strictly(tokenizer, tensors, path)
        return tokenizer.eval()
