"""Losses on decoded images that any decoder can add to its own loss: perceptual and adversarial."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.core.numbers import NonNegativeFloat, PositiveInt
from uniflow.core.part import Part
from uniflow.layers.precision import full_dtype, without_autocast
from uniflow.losses.lpips import LPIPSNetwork, read_lpips


class PixelLoss(Part):
    """Base class of losses that compare a decoder's one-step estimate with the true images.

    Its parameters are trained with the model's, by the same optimizer, and are saved in checkpoints of a run, not in
    the tokenizer.

    Args:
        weight: factor on the loss.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(self, weight: NonNegativeFloat) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, estimate: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Weighted losses by name, scalars, at least float32; their sum is minimised.

        Args:
            estimate: (B, 3, H, W), nominally in [0, 1], not clamped; gradients flow through it.
            images: the true images, float in [0, 1], (B, 3, H, W).
        """


class Perceptual(PixelLoss):
    """LPIPS, the distance of deep features (arXiv 1801.03924; see `LPIPSNetwork`), always in float32.

    The network is frozen and outside the module tree, so checkpoints do not hold it.

    Args:
        weights: safetensors file with the backbone's convolutions (torchvision's keys, "features.0.weight", ...) and
            the heads (LPIPS's keys, "lin0.model.1.weight", ...). docs/decoders.md has a script that makes it.
        backbone: the network that `weights` is for, in torchvision's terms.
        weight: factor on the loss.
        sha256: checksum of the file in hexadecimal; None does not check it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has another checksum, is not in the safetensors format or does not fit the backbone, or for
            a negative weight.
    """

    _network: LPIPSNetwork

    def __init__(
        self,
        weights: str,
        backbone: Literal["vgg16", "alexnet"] = "vgg16",
        weight: NonNegativeFloat = 1.0,
        sha256: str | None = None,
    ) -> None:
        super().__init__(weight)
        # Outside the module tree, so in no checkpoint and no optimizer, and `train()` does not reach it.
        object.__setattr__(self, "_network", read_lpips(weights, backbone, sha256))

    def forward(self, estimate: Tensor, images: Tensor) -> dict[str, Tensor]:
        """`{"perceptual": weight * LPIPS}`, the mean over the batch.

        Raises:
            ValueError: for images smaller than the backbone can take.
        """
        network = self._network.to(estimate.device)  # moves on the first call
        with without_autocast(estimate.device):
            return {"perceptual": self.weight * network(estimate.float(), images.float()).mean()}


class Adversarial(PixelLoss):
    """A patch discriminator (arXiv 1611.07004) and the hinge loss (arXiv 1705.02894).

    Discriminator: (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x_hat))) / 2, on the detached estimate. Generator:
    -mean D(x_hat), with the discriminator's parameters detached. So one backward pass of the sum gives each side its
    own gradient, and one optimizer trains both. It is trained from the first step on; group norms keep no statistics.

    Args:
        weight: factor on the generator's loss; the discriminator's own is not weighted.
        width: channels of the discriminator's first layer; each further layer doubles them, up to 8 times.
        depth: layers that halve the image.

    Raises:
        ValueError: for a negative weight, a width that is not a multiple of 8 or a depth below 1.
    """

    def __init__(self, weight: NonNegativeFloat = 0.1, width: PositiveInt = 64, depth: PositiveInt = 3) -> None:
        super().__init__(weight)
        if width % 8:
            raise ValueError(f"Adversarial.width must be a multiple of 8, got {width}")
        self.depth = depth
        channels = [width * min(2**layer, 8) for layer in range(depth)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)]
            layers += [nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, estimate: Tensor, images: Tensor) -> dict[str, Tensor]:
        """`{"adversarial": the generator's loss, "discriminator": the discriminator's}`.

        Raises:
            ValueError: for images too small for the discriminator's depth.
        """
        if min(images.shape[-2:]) < 2**self.depth:
            raise ValueError(
                f"Adversarial.depth {self.depth} needs images of at least {2**self.depth} pixels a side, got "
                f"{images.shape[-2]} x {images.shape[-1]}"
            )
        detached = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        with without_autocast(estimate.device):
            dtype = next(self.parameters()).dtype  # float32, unless the whole model is in low precision
            estimate, images = (2 * x.to(dtype) - 1 for x in (estimate, images))
            judged = torch.func.functional_call(self.discriminator, detached, (estimate,))
            pair = self.discriminator(torch.cat([images, estimate.detach()]))
            real, decoded = pair.to(full_dtype(dtype)).chunk(2)
            hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + decoded).mean())
            return {"adversarial": -self.weight * judged.to(real.dtype).mean(), "discriminator": hinge}
