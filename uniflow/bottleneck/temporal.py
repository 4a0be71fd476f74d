"""Several frames of a clip as one latent, and back to frames: it starts as a mean, and leaves single images alone."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.layers.over_time import Memory, OverTime
from uniflow.layers.precision import full_precision


class TemporalMerging(OverTime):
    """Each g = `group` neighbouring frames z become one latent m at each place of the grid, and g frames y again.

    m_j = mean_i z_i + P(z_2 - z_1, ..., z_g - z_(g-1); mean)   and   y_i = m_j + Q_i(m_j - m_(j-1); m_j)

    A clip's first frame is a group of its own, as in causal video autoencoders (MAGVIT-v2, arXiv 2310.05737): 1 + k g
    frames have 1 + k latents. A last group that is not full is filled up with its last frame, and what is filled up is
    cut off again. P and Q are `GatedChange`s, zero in the beginning: m is the mean and each y is m. So

    - images, and first frames, pass without a change of a bit whatever has been learned;
    - so does a clip in which nothing moves, since P and Q of no change are zero;
    - no latent depends on frames after its own, and no frame on latents after its own.

    Args:
        inputs: channels of z and m.
        channels: channels of m as it comes back, and of y: fewer than `inputs` where a variance is predicted, too.
        width: hidden channels of P and Q.
        group: frames g of a latent, at least 2.
    """

    starts_as_identity: ClassVar[bool] = True  # of images: a training may begin from weights that lack it

    def __init__(self, inputs: int, channels: int, width: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.into = GatedChange((group - 1) * inputs, inputs, width, inputs)
        self.out_of = GatedChange(channels, channels, width, group * channels)

    def merge(self, tokens: Tensor) -> Tensor:
        """Tokens (B T, h, w, inputs) of clips of T frames, clip after clip -> (B n, h, w, inputs), of the same type.

        n is 1 + ceil((T - 1) / g); of a later piece of a clip, ceil(T / g).

        Raises:
            ValueError: if these are not whole clips, or the piece of the clip before did not end with a group.
        """
        frames, memory = self._clip
        if frames == 1 and memory is None:
            return tokens
        if len(tokens) % frames:
            raise ValueError(f"{len(tokens)} images are not whole clips of {frames} frames")
        clips = full_precision(tokens).unflatten(0, (-1, frames))
        first, last = self._first(self.into), clips[:, -1:]
        unfinished = (frames - first) % self.group
        if memory is not None:
            self._check_piece(memory)
            memory[self.into] = (clips[:, frames - unfinished :].detach(),)
        filled = torch.cat([clips[:, first:], last.expand(-1, -unfinished % self.group, -1, -1, -1)], dim=1)
        groups = filled.unflatten(1, (filled.shape[1] // self.group, self.group))  # (B, k, g, h, w, inputs)
        start = groups[:, :, 0]
        mean = start + (groups - start[:, :, None]).mean(dim=2)  # exact where nothing moves
        merged = mean + self.into(groups.diff(dim=2).movedim(2, -2).flatten(-2), mean)
        return torch.cat([clips[:, :first], merged], dim=1).flatten(0, 1).to(tokens.dtype)

    def to_frames(self, latents: Tensor) -> Tensor:
        """Latents (B n, channels, h, w) of clips of T frames -> (B T, channels, h, w), of the same type; see `merge`.

        Raises:
            ValueError: if these are not the latents of whole clips.
        """
        frames, memory = self._clip
        if frames == 1 and memory is None:
            return latents
        first = self._first(self.out_of)
        number = first + math.ceil((frames - first) / self.group)
        if len(latents) % number:
            clip = f"a clip of {frames} frames has" if first else f"{frames} further frames of one have"
            raise ValueError(f"{len(latents)} latents are not those of whole clips: {clip} {number}")
        clips = full_precision(latents).movedim(1, -1).unflatten(0, (-1, number))
        past = clips[:, :1] if first or memory is None else memory[self.out_of][0]
        if memory is not None:
            memory[self.out_of] = (clips[:, -1:].detach(),)
        own, before = clips[:, first:], torch.cat([past, clips], dim=1)[:, first:-1]
        changes = self.out_of(own - before, own).unflatten(-1, (self.group, latents.shape[1]))
        spread = (own[..., None, :] + changes).movedim(-2, 2).flatten(1, 2)  # (B, k g, h, w, channels)
        result = torch.cat([clips[:, :first], spread[:, : frames - first]], dim=1)
        return result.flatten(0, 1).movedim(-1, 1).to(latents.dtype)

    def _first(self, module: nn.Module) -> int:
        """How many of the frames stand alone in what `module` does: 1 where a clip begins, else 0."""
        memory = self._clip[1]
        return int(memory is None or module not in memory)

    def _check_piece(self, memory: Memory) -> None:
        if self.into in memory and (count := memory[self.into][0].shape[1]):
            raise ValueError(
                f"a clip goes on after a piece that ended with {count} of the {self.group} frames of a latent: pieces "
                f"but the last need 1 + {self.group} k frames if they are the first, then {self.group} k"
            )


class GatedChange(nn.Module):
    """W_o (silu(W_g norm[c, d]) * W_v d) of changes d and what they change, c; zero where d is, and zero at first.

    A gated linear unit (arXiv 2002.05202) without biases beside the gate, so that no change gives exactly nothing.

    Args:
        changes: channels of d.
        context: channels of c.
        width: hidden channels.
        outputs: channels of the result.
    """

    def __init__(self, changes: int, context: int, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(changes + context)
        self.gate = nn.Linear(changes + context, width)
        self.value = nn.Linear(changes, width, bias=False)
        nn.init.normal_(self.value.weight, std=changes**-0.5)
        self.projection = nn.Linear(width, outputs, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, changes: Tensor, context: Tensor) -> Tensor:
        """(..., changes) and (..., context) -> (..., outputs), in the parameters' type."""
        changes, context = (values.to(self.value.weight.dtype) for values in (changes, context))
        gate = F.silu(self.gate(self.norm(torch.cat([context, changes], dim=-1))))
        return self.projection(gate * self.value(changes))
