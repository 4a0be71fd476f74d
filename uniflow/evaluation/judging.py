"""Reconstructions under the evaluation protocol: decoded with noise of their own, judged batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from uniflow.core.pixels import to_unit_range
from uniflow.metrics import (
    Evaluation,
    image_digests,
    noise_for,
    patch_means,
    psnr,
)
from uniflow.tokenizer import Tokenizer


def decodings(
    tokenizer: Tokenizer, latents: Tensor, digests: Sequence[str], steps: Sequence[int], noise_seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Decode `latents` (B, C, h, w) with each number of `steps`.

    The noise belongs to each image, so a reconstruction does not depend on the batch or the process it is in.

    Yields:
        A suffix for metrics' names ("" for the first, "_steps4" for further ones), and the images in [0, 1], float32.
    """
    p = tokenizer.patch_size
    shape = (3, latents.shape[-2] * p, latents.shape[-1] * p)
    noise = noise_for(digests, shape, noise_seed).to(latents.device)
    for count in steps:
        suffix = "" if count == steps[0] else f"_steps{count}"
        yield suffix, tokenizer.decode(latents, steps=count, noise=noise).float()


def judge_batch(
    evaluation: Evaluation,
    tokenizer: Tokenizer,
    images: Tensor,
    latents: Tensor,
    steps: Sequence[int] = (1,),
    names: Sequence[str] | None = None,
    noise_digests: Sequence[str] | None = None,
) -> Tensor:
    """Decode and judge one batch.

    Args:
        evaluation: takes the numbers; the batch becomes its current one.
        tokenizer: its decoder reconstructs.
        images: the originals (B, 3, H, W), uint8 or float in [0, 1].
        latents: what the tokenizer made of them.
        steps: numbers of sampler steps to judge.
        names: file names or the like.
        noise_digests: what the noise of each image is drawn by; its own digest if there are none.

    Returns:
        The reconstructions with the first number of steps, (B, 3, H, W) in [0, 1], float32.
    """
    originals = to_unit_range(images)
    height, width = images.shape[-2:]
    digests = image_digests(images)
    evaluation.add_originals(originals, digests, names)
    reconstructions = []
    for suffix, decoded in decodings(
        tokenizer, latents, noise_digests or digests, steps, evaluation.protocol.noise_seed
    ):
        reconstructions.append(decoded[..., :height, :width])
        evaluation.add(reconstructions[-1], suffix)
    # The coarsest image of the same grid: each patch in its mean colour.
    coarse = patch_means(tokenizer.pad(originals), tokenizer.patch_size)[..., :height, :width]
    evaluation.add_values("psnr_patch_mean", psnr(coarse, originals))
    return reconstructions[0]
