"""Statistics of hidden states on training images, by which layers are normalised."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from uniflow.core.distributed import sum_over_ranks
from uniflow.tokenizer import Tokenizer


@torch.no_grad()
def calibrate(tokenizer: Tokenizer, batches: Iterable[Tensor]) -> None:
    """Measure mean and size of every hidden state, over all processes, and give them to the bottleneck.

    Every process has to call it, each with the same number of batches.

    Args:
        tokenizer: in evaluation mode, on its device.
        batches: images (B, 3, H, W), uint8 or float in [0, 1], on that device, of sides that the patch divides.

    Raises:
        ValueError: if there are no images.
    """
    spec = tokenizer.encoder.spec
    device = next(tokenizer.parameters()).device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    # For every layer, then for the embeddings, by channel: sum, sum of squares.
    sums = torch.zeros(2, spec.num_layers + 1, spec.embed_dim, device=device, dtype=dtype)
    count = torch.zeros((), device=device, dtype=dtype)
    for images in batches:
        output = tokenizer.encoder(images)
        embeddings = [] if output.embeddings is None else [output.embeddings]
        for layer, state in enumerate([*output.hidden_states, *embeddings]):
            rows = state.flatten(0, 1).to(dtype)
            sums[:, layer] += torch.stack([rows.sum(0), rows.square().sum(0)])
        count += len(rows)
    sum_over_ranks(sums, count)
    if not count:
        raise ValueError("there is nothing to calibrate on: the training data gave no image")
    means, squares = sums / count
    tokenizer.bottleneck.calibrate(means, _std(means, squares))


def _std(means: Tensor, squares: Tensor) -> Tensor:
    return (squares - means.square()).mean(dim=1).clamp_min(0).sqrt()
