"""How far the student's hidden states are from the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from uniflow.encoders.base import EncoderOutput
from uniflow.layers.precision import full_precision, without_autocast

# Norms below this count as this, as in `torch.nn.functional.cosine_similarity`.
EPS = 1e-8


def cosine_distances(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """d_l = 1 - mean over batch and tokens of cos(H_U^l, H_T^l), in at least float32 (arXiv 2510.10575).

    Args:
        student: hidden states of the L blocks, each (B, N, D); gradients flow through these.
        teacher: the same of the teacher; detached.

    Returns:
        Distances (L,), in [0, 2].

    Raises:
        ValueError: if the two have different numbers of layers or shapes.
    """
    return 1 - torch.stack([cosine.mean() for cosine in _cosines(student, teacher)])


def image_cosines(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """1 - d_l of each image: the mean over tokens of cos(H_U^l, H_T^l), (L, B), in at least float32."""
    return torch.stack([cosine.mean(dim=1) for cosine in _cosines(student, teacher)])


def token_cosines(student: Tensor, teacher: Tensor) -> Tensor:
    """cos(student, teacher) along the last dimension, in at least float32: (..., D) and (..., D) -> (...).

    The values and gradients of `torch.nn.functional.cosine_similarity` on float32 copies. For the backward pass only
    the arguments in their own type and three numbers a token are kept, not the copies.

    Args:
        student: gradients flow through this; not twice.
        teacher: detached.
    """
    with without_autocast(student.device):
        return _TokenCosines.apply(student, teacher.detach())


class _TokenCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        a, b = full_precision(student), full_precision(teacher)
        norm_a, norm_b = (torch.linalg.vector_norm(x, dim=-1).clamp_min(EPS) for x in (a, b))
        cosines = (a * b).sum(dim=-1) / norm_a / norm_b
        ctx.save_for_backward(student, teacher, norm_a, norm_b, cosines)
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        student, teacher, norm_a, norm_b, cosines = ctx.saved_tensors
        # d cos / da = b / (|a| |b|) - cos a / |a|^2; a norm at its floor does not depend on a.
        on_b = gradient / norm_a / norm_b
        on_a = torch.where(norm_a > EPS, gradient * cosines / norm_a.square(), 0)
        on_student = full_precision(teacher) * on_b[..., None]
        on_student.addcmul_(full_precision(student), on_a[..., None], value=-1)
        return on_student.to(student.dtype), None


def _cosines(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Iterator[Tensor]:
    """cos(H_U^l, H_T^l) of every token, (B, N), for each layer."""
    if len(student) != len(teacher):
        raise ValueError(
            f"student and teacher must have the same number of layers, got {len(student)} and {len(teacher)}"
        )
    for layer, (h_student, h_teacher) in enumerate(zip(student, teacher, strict=True), start=1):
        if h_student.shape != h_teacher.shape:
            raise ValueError(f"layer {layer}: student {tuple(h_student.shape)}, teacher {tuple(h_teacher.shape)}")
        yield token_cosines(h_student, h_teacher)


def tokens_to_match(output: EncoderOutput, *, prefix: bool) -> list[Tensor]:
    """Each block's tokens that distillation compares: patch tokens, with class and register tokens on request."""
    if not prefix:
        return list(output.hidden_states)
    return [torch.cat(pair, dim=1) for pair in zip(output.prefix_tokens, output.hidden_states, strict=True)]
