"""The start of a tokenizer from second moments of its encoder's hidden states and the pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from uniflow.bottleneck.layers import last_features
from uniflow.core.distributed import is_distributed
from uniflow.core.moments import SecondMoments
from uniflow.core.numbers import CheckedNumbers, NonNegativeFloat, PositiveInt, UnitFloatBelow1
from uniflow.core.pixels import to_unit_range
from uniflow.layers.grid import patchify
from uniflow.metrics import image_digests
from uniflow.sharding.shard import reshard, spread_like
from uniflow.start.solution import LinearTokenizer, solve
from uniflow.tokenizer import Tokenizer


class Regression(CheckedNumbers):
    """Start from the best linear tokenizer, in closed form.

    One reduced-rank regression from what the bottleneck reads to the pixels of each patch and to the encoder's last
    hidden state (normalised) together: its directions become the bottleneck's linear path, its way back to pixels the
    decoder's. The rest of both networks starts at zero and learns what is left.

    Args:
        images: training images (crops) whose moments are taken, over all processes.
        tokens: tokens of each image that are used, drawn at random as a function of the image; null is all. Tokens of
            one image are alike, and products of many thousand channels cost more than the encoder.
        feature_share: share of the last hidden state in the targets' variance, the rest is the pixels'. More keeps
            more of the features in the latents, and less of the image.
        ridge: share of itself by which each input's variance is raised, which damps the solution.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        images: PositiveInt = 2048,
        tokens: PositiveInt | None = 64,
        feature_share: UnitFloatBelow1 = 0.25,
        ridge: NonNegativeFloat = 1e-3,
    ) -> None:
        self.images, self.tokens, self.feature_share, self.ridge = images, tokens, feature_share, ridge

    @torch.no_grad()
    def fit(self, tokenizer: Tokenizer, batches: Iterable[Tensor]) -> LinearTokenizer:
        """Solve for `tokenizer`, whose encoder is still the pretrained one, and write the solution into it.

        Every process has to call it, with batches of its own.

        Args:
            tokenizer: in evaluation mode, on its device.
            batches: images (B, 3, H, W), uint8 or float in [0, 1], on that device, of sides that the patch divides.

        Raises:
            ValueError: if bottleneck or decoder has no linear path, or there are no images.
        """
        bottleneck, p = tokenizer.bottleneck, tokenizer.patch_size
        for part in (bottleneck, tokenizer.decoder):
            part.check_linear_start()
        moments = SecondMoments()
        for images in batches:
            output = tokenizer.encoder(images)
            inputs = bottleneck.tokens(output)
            pixels = to_unit_range(images)
            features = last_features(output, inputs.shape[1]).to(pixels.dtype)
            targets = torch.cat([patchify(pixels, p), features], dim=-1)
            rows = inputs.flatten(1, 2)
            chosen = self._choose(images, rows.shape[1]).to(rows.device)
            places = torch.arange(len(rows), device=rows.device)[:, None]
            moments.update(rows[places, chosen].flatten(0, 1), targets[places, chosen].flatten(0, 1))
        moments.reduce()
        shape = (tokenizer.latent_channels, 3 * p**2)
        solution = solve(moments, *shape, self.feature_share, self.ridge, bottleneck.start_scale)
        write(tokenizer, solution)
        return solution

    def _choose(self, images: Tensor, count: int) -> Tensor:
        """Positions of the tokens to use, (B, tokens): a function of each image alone, not of its batch."""
        if self.tokens is None or self.tokens >= count:
            return torch.arange(count).expand(len(images), -1)
        seeds = [int(digest[:12], 16) for digest in image_digests(images)]
        order = [torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(order)[:, : self.tokens]


@torch.no_grad()
def write(tokenizer: Tokenizer, solution: LinearTokenizer) -> None:
    """Put a solution into bottleneck and decoder, sharded or not; process 0's, should others differ in a last digit."""
    parts = (
        (tokenizer.bottleneck, tokenizer.bottleneck.linear_start(solution.encode_weight, solution.encode_bias)),
        (
            tokenizer.decoder,
            tokenizer.decoder.linear_start(solution.decode_weight, solution.decode_bias, solution.error),
        ),
    )
    for part, values in parts:
        set_values(part, values)


@torch.no_grad()
def set_values(part: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set parameters and buffers by name, sharded or not, to what process 0 has; every process has to call it."""
    reshard(part)
    state = dict(part.named_parameters()) | dict(part.named_buffers())
    for name, value in values.items():
        target = state[name]
        whole = value.to(target.device, target.dtype).contiguous()
        if is_distributed():
            torch.distributed.broadcast(whole, src=0)
        target.copy_(spread_like(target, whole))
