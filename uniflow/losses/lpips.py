"""LPIPS: the distance of two images in the deep features of a frozen network."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from uniflow.core.files import open_regular

# The activations that LPIPS compares (index into torchvision's `features`: channels), and an image's smallest side.
_BACKBONES = {
    "vgg16": ({3: 64, 8: 128, 15: 256, 22: 512, 29: 512}, 16),
    "alexnet": ({1: 64, 4: 192, 7: 384, 9: 256, 11: 256}, 31),
}
# LPIPS's mean and standard deviation of pixels in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPSNetwork(nn.Module):
    """Backbone and heads of LPIPS, version 0.1 (arXiv 1801.03924).

    Per layer, features are scaled to unit length at each position; their squared differences are weighted by a learned
    head, averaged over positions and summed over layers.

    Args:
        backbone: "vgg16" or "alexnet".

    Raises:
        ValueError: for another backbone.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        if backbone not in _BACKBONES:
            raise ValueError(f"an LPIPS backbone must be one of {', '.join(_BACKBONES)}, got {backbone!r}")
        self.backbone = backbone
        taps, self.min_size = _BACKBONES[backbone]
        self.taps = tuple(taps)
        self.features = getattr(torchvision.models, backbone)(weights=None).features[: self.taps[-1] + 1]
        self.heads = nn.ParameterList(torch.empty(1, channels, 1, 1) for channels in taps.values())

    def forward(self, estimate: Tensor, images: Tensor) -> Tensor:
        """LPIPS of two batches (B, 3, H, W), nominally in [0, 1] -> (B,). Gradients flow to `estimate` only."""
        if min(images.shape[-2:]) < self.min_size:
            raise ValueError(
                f"LPIPS with {self.backbone} needs images of at least {self.min_size} pixels a side, got "
                f"{images.shape[-2]} x {images.shape[-1]}"
            )
        with torch.no_grad():
            true = self.activations(images)
        distance = images.new_zeros(len(images))
        for head, h_estimate, h_true in zip(self.heads, self.activations(estimate), true, strict=True):
            distance = distance + F.conv2d((h_estimate - h_true).square(), head).mean(dim=(1, 2, 3))
        return distance

    def activations(self, images: Tensor) -> list[Tensor]:
        """Activations of the compared layers, each of unit length over its channels."""
        shift, scale = (images.new_tensor(values).view(3, 1, 1) for values in (_SHIFT, _SCALE))
        x, features = (2 * images - 1 - shift) / scale, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                # Under the root, so that a position where nothing is active has a gradient.
                features.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return features


def read_lpips(weights: str, backbone: str, sha256: str | None = None) -> LPIPSNetwork:
    """The frozen network of a weights file, on the CPU, in float32. Nothing is downloaded.

    Args:
        weights: safetensors file with the backbone's convolutions (torchvision's keys, "features.0.weight", ...) and
            the heads (LPIPS's keys, "lin0.model.1.weight", ...); others are skipped.
        backbone: "vgg16" or "alexnet".
        sha256: checksum of the file in hexadecimal; None does not check it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has another checksum, is not in the safetensors format or does not fit the backbone.
    """
    with torch.device("meta"):  # torchvision would draw random weights
        network = LPIPSNetwork(backbone)
    if not Path(weights).exists():
        raise FileNotFoundError(
            f"LPIPS weights: no such file: {weights!r}; docs/decoders.md has a script that makes it"
        )
    open_regular(weights).close()
    if sha256 is not None:
        with open(weights, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256.lower():
            raise ValueError(f"LPIPS weights: {weights} has the SHA-256 {digest}, expected {sha256}")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"LPIPS weights: {weights} is not a safetensors file: {error}") from error
    expected = network.state_dict()
    names = {key: re.sub(r"^heads\.(\d)$", r"lin\1.model.1.weight", key) for key in expected}
    wrong = [n for key, n in names.items() if n not in tensors or tensors[n].shape != expected[key].shape]
    if wrong:
        raise ValueError(
            f"LPIPS weights: {weights} holds no LPIPS for {backbone}: missing or misshapen are "
            f"{', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"
        )
    network.load_state_dict({key: tensors[name].float() for key, name in names.items()}, assign=True)
    return network.eval().requires_grad_(False)
