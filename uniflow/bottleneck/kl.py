"""A Gaussian latent, as of variational autoencoders."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.core.numbers import NonNegativeFloat, PositiveInt
from uniflow.core.specs import EncoderOutput, EncoderSpec
from uniflow.layers.precision import full_precision

# Range of the log-variance, as in latent diffusion (arXiv 2112.10752): its exponential stays finite in float32.
LOG_VARIANCE_RANGE = (-30.0, 20.0)
# What a regression start sets it to: samples .05 away from a mean whose own deviation is 1.
START_LOG_VARIANCE = -6.0


class KLBottleneck(ProjectedBottleneck):
    """A diagonal Gaussian for each latent, held near N(0, 1) (VAE, arXiv 1312.6114; as in arXiv 2112.10752).

    The projection, of normalised tokens, gives mean and log-variance. The latent is a sample in training and the mean
    in evaluation. The loss "kl" is `weight` times `gaussian_kl`: a sum over the elements of an image's latents and a
    mean over the batch, as in latent diffusion, where the default weight comes from. So it grows with the image's area.

    Args:
        encoder: spec of the encoder in front.
        channels: channels of a latent.
        weight: factor on the divergence.
        merge: merge squares of this many by this many neighbouring tokens into one latent.
        **reads: `layers`, `fuse`, `normalize`, `shortcut` and `temporal_merge` of `ProjectedBottleneck`.

    Raises:
        ValueError: if a number is below 1, the weight below 0, or there is no such layer.
    """

    outputs_per_channel: ClassVar[int] = 2
    # Or the variances would begin as large as the encoder's last hidden state is.
    normalize_last: ClassVar[bool] = True

    def __init__(
        self,
        encoder: EncoderSpec,
        channels: PositiveInt = 64,
        weight: NonNegativeFloat = 1e-6,
        merge: PositiveInt = 1,
        **reads: Any,
    ) -> None:
        super().__init__(encoder, channels, merge, **reads)
        self.record_defaults(ProjectedBottleneck)
        self.weight = weight

    def linear_start(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        values = super().linear_start(weight, bias)
        values["shortcut.bias"][len(bias) :] = START_LOG_VARIANCE
        return values

    def forward(self, output: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = self.project(output).permute(0, 3, 1, 2)
        # A variance loses most of its digits in bfloat16.
        mean, log_variance = full_precision(outputs).chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return latents.to(self.fc2.weight.dtype), {"kl": self.weight * gaussian_kl(mean, log_variance)}


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats (arXiv 1312.6114, appendix B).

    Args:
        mean: (B, ...).
        log_variance: the same shape.

    Returns:
        A scalar: 1/2 sum (mean^2 + exp(log_variance) - 1 - log_variance) over all but the first axis, mean over that.
    """
    terms = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return terms.flatten(1).sum(dim=1).mean()
