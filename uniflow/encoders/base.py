"""Base class of encoders: pixels in, the hidden state of every block out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uniflow.core.numbers import PositiveInt, constructor_arguments
from uniflow.core.part import Part
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, EncoderSpec
from uniflow.encoders.lora import add_adapters, merge_part
from uniflow.layers.precision import full_dtype

__all__ = ["EncoderOutput", "Tune", "VisionEncoder", "set_trainable"]

Tune = Literal["full", "frozen", "lora"] | PositiveInt


class VisionEncoder(Part):
    """Base class of encoders: RGB pixels -> the hidden state of every transformer block.

    A subclass sets `spec` in its constructor and implements `forward`. If its constructor takes `tune` and the
    arguments of `lora_arguments`, it is saved with merged weights, as if `tune` had been `full`.
    """

    spec: EncoderSpec

    @classmethod
    def unloaded_arguments(cls) -> dict[str, Any]:
        """Arguments with which the constructor reads and fetches no weights; a saved tokenizer is rebuilt with them.

        By default `weights` is None if the constructor takes an argument of that name. Override this if weights come in
        by another argument.
        """
        return {"weights": None} if "weights" in constructor_arguments(cls) else {}

    @property
    def base_model(self) -> str | None:
        """Hub name of the weights that the encoder started from, for the model card; None if there is none."""
        return None

    @classmethod
    def plain_state(
        cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return merge_part(arguments, tensors)

    @abstractmethod
    def forward(self, images: Tensor) -> EncoderOutput:
        """Encode a batch.

        Args:
            images: RGB pixels (B, 3, H, W), uint8 or float in [0, 1]; H and W are multiples of the patch size.

        Returns:
            The hidden states of all blocks.

        Raises:
            ValueError: if H or W is not a multiple of the patch size, or the images are not RGB.
        """

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels (uint8, or float in [0, 1]) to the range that the encoder was pretrained on, in its parameters' type.

        Computed in at least float32.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be RGB (B, 3, H, W), got {tuple(images.shape)}")
        p = self.spec.patch_size
        if images.shape[-2] % p or images.shape[-1] % p:
            raise ValueError(f"image sides must be multiples of the patch size {p}, got {tuple(images.shape[-2:])}")
        dtype = next(self.parameters()).dtype
        images = to_unit_range(images, full_dtype(dtype)).to(full_dtype(dtype))
        mean = torch.tensor(self.spec.mean, device=images.device, dtype=images.dtype).view(3, 1, 1)
        std = torch.tensor(self.spec.std, device=images.device, dtype=images.dtype).view(3, 1, 1)
        return ((images - mean) / std).to(dtype)


def set_trainable(model: nn.Module, blocks: nn.ModuleList, tune: Tune, **lora: Any) -> None:
    """Make the parameters that `tune` names trainable, and freeze all others.

    Args:
        model: the whole encoder.
        blocks: its transformer blocks, first to last.
        tune: `full`, `frozen`, a number k for the last k blocks only, or `lora` for adapters, which are inserted.
        **lora: what `lora_arguments` returned.

    Raises:
        ValueError: if `tune` is none of these, or the blocks have no layers for the adapters.
        ImportError: if adapters are wanted and peft is not installed.
    """
    depth = len(blocks)
    if tune not in ("full", "frozen", "lora") and (
        isinstance(tune, bool) or not isinstance(tune, int) or not 1 <= tune <= depth
    ):
        raise ValueError(
            f"tune must be 'full', 'frozen', 'lora' or a number of last blocks from 1 to {depth}, not {tune!r}"
        )
    model.requires_grad_(tune == "full")
    if tune == "lora":
        add_adapters(model, blocks, **lora)
    if isinstance(tune, int):
        for block in blocks[-tune:]:
            block.requires_grad_(True)
