"""Prompts to a batch: the image is expanded to its tokens, rows are padded, labels are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uniflow.language.prompts import IMAGE_ID, Prompt, PromptError

IGNORE = -100  # label of a token that is not trained


@dataclass(frozen=True)
class TokenBatch:
    """T prompts of at most L tokens, after the image's tokens have been put in.

    Attributes:
        ids: int64 (T, L); `IMAGE_ID` at each image token.
        mask: int64 (T, L), 0 at padding.
        labels: int64 (T, L), the token's own id, and `IGNORE` where it is not trained.
        images: int64 (T,), which image of the batch a prompt is about; -1 for a prompt of text alone.
        cut: share of the prompts that lost text.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    images: Tensor
    cut: float

    def to(self, device: torch.device) -> TokenBatch:
        """The same on a device."""
        ids, mask, labels, images = (t.to(device) for t in (self.ids, self.mask, self.labels, self.images))
        return TokenBatch(ids, mask, labels, images, self.cut)

    @property
    def trained(self) -> float:
        """Share of the tokens, padding and images left out, that are trained."""
        text = (self.mask > 0) & (self.ids != IMAGE_ID)
        return float((self.labels != IGNORE).sum() / text.sum().clamp_min(1))


def collate_prompts(
    prompts: Sequence[Prompt],
    images: Sequence[int],
    image_tokens: int,
    pad_id: int,
    side: Literal["right", "left"] = "right",
    names: Sequence[str] | None = None,
) -> TokenBatch:
    """Make a batch of prompts.

    Args:
        prompts: already cut: image tokens are never cut.
        images: for each prompt the number of its image.
        image_tokens: tokens of an image, as many as the projector gives.
        pad_id: id of padding.
        side: where padding goes: right for training, left for answering. On the right every prompt has to have a
            trained token.
        names: of the samples, for errors.

    Raises:
        PromptError: if a prompt to train on has no trained token.
    """
    rows: list[tuple[list[int], list[int]]] = []
    for number, prompt in enumerate(prompts):
        if side == "right" and not any(prompt.trained):
            name = names[number] if names else f"sample {number} of the batch"
            raise PromptError(f"{name}: not one token is trained: its answers are empty")
        ids: list[int] = []
        labels: list[int] = []
        for token, trained in zip(prompt.ids, prompt.trained, strict=True):
            count = image_tokens if token == IMAGE_ID else 1
            ids += [token] * count
            labels += [token if trained else IGNORE] * count
        rows.append((ids, labels))
    length = max(len(ids) for ids, _ in rows)
    batch = torch.full((3, len(rows), length), 0)
    batch[0], batch[2] = pad_id, IGNORE
    for row, (ids, labels) in enumerate(rows):
        place = slice(length - len(ids), length) if side == "left" else slice(0, len(ids))
        batch[0, row, place], batch[1, row, place] = torch.tensor(ids), 1
        batch[2, row, place] = torch.tensor(labels)
    about = [image if IMAGE_ID in prompt.ids else -1 for prompt, image in zip(prompts, images, strict=True)]
    cut = sum(prompt.cut for prompt in prompts) / len(prompts)
    return TokenBatch(batch[0], batch[1], batch[2], torch.tensor(about), cut)
