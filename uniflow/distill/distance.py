"""How far the student's hidden states are from the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.encoders.base import EncoderOutput


def cosine_distances(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """d_l = 1 - mean over batch and tokens of cos(H_U^l, H_T^l), in float32 at least (arXiv 2510.10575).

    Args:
        student: hidden states of the L blocks, each (B, N, D); gradients flow through these.
        teacher: the same of the teacher; detached.

    Returns:
        Distances (L,), in [0, 2].

    Raises:
        ValueError: if the two have different numbers of layers or shapes.
    """
    return torch.stack([1 - cosine.mean() for cosine in _cosines(student, teacher)])


def image_cosines(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """1 - d_l of each image: the mean over tokens of cos(H_U^l, H_T^l), (L, B), in float32 at least."""
    return torch.stack([cosine.mean(dim=1) for cosine in _cosines(student, teacher)])


def _cosines(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Iterator[Tensor]:
    """cos(H_U^l, H_T^l) of every token, (B, N), for each layer."""
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must have as many layers, got {len(student)} and {len(teacher)}")
    for layer, (h_student, h_teacher) in enumerate(zip(student, teacher, strict=True), start=1):
        if h_student.shape != h_teacher.shape:
            raise ValueError(f"layer {layer}: student {tuple(h_student.shape)}, teacher {tuple(h_teacher.shape)}")
        dtype = torch.promote_types(h_student.dtype, torch.float32)
        with torch.autocast(h_student.device.type, enabled=False):
            yield F.cosine_similarity(h_student.to(dtype), h_teacher.detach().to(dtype), dim=-1)


def tokens_to_match(output: EncoderOutput, *, prefix: bool) -> list[Tensor]:
    """Each block's tokens that distillation compares: patch tokens, with class and register tokens on request."""
    if not prefix:
        return list(output.hidden_states)
    return [torch.cat(pair, dim=1) for pair in zip(output.prefix_tokens, output.hidden_states, strict=True)]
