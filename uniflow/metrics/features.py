"""Feature extractors: one vector for each image, which metrics of sets of images compare."""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.core.files import open_regular
from uniflow.core.numbers import NonNegativeInt
from uniflow.core.pixels import to_uint8
from uniflow.core.tensors import weights_hash
from uniflow.encoders.base import VisionEncoder
from uniflow.layers.grid import to_image
from uniflow.layers.precision import without_autocast

INCEPTION_SHA256 = "6726825d"  # how torch-fidelity's published file begins; the file's name carries it too


class FeatureExtractor(ABC):
    """Images -> one feature vector each, by a frozen network that belongs to no checkpoint.

    Attributes:
        name: short name in the metrics' names, such as "dinov2".
    """

    name: str

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> features (B, D), float32, on the images' device."""

    def with_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features as above, and class logits (B, K), float32, of the same pass; None of a network without classes."""
        return self(images), None

    @abstractmethod
    def identity(self) -> str:
        """What this extractor computes, with a hash of its weights: two equal identities give equal features."""


class EncoderFeatures(FeatureExtractor):
    """The mean patch token of an encoder's last block.

    Args:
        encoder: makes the encoder; the embedded one by default, which is there without network but has seen nothing
            but rendered scenes. For photographs DINOv2 is the common choice (arXiv 2306.04675).
        name: in the metrics' names.

    The images are brought to whole patches by cutting the right and bottom edge.
    """

    def __init__(self, encoder: Callable[[], VisionEncoder] | None = None, name: str = "scene_vit") -> None:
        self.name = name
        self._factory = encoder
        self._encoder: VisionEncoder | None = None

    @property
    def encoder(self) -> VisionEncoder:
        """The frozen encoder, built on first use."""
        if self._encoder is None:
            from uniflow.encoders import SceneViT

            self._encoder = (self._factory or SceneViT)().eval().requires_grad_(False)
        return self._encoder

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.states(images)[-1].float().mean(dim=1)

    def states(self, images: Tensor) -> tuple[Tensor, ...]:
        """The hidden states of all blocks, (B, N, D) each, for images (B, 3, H, W) in [0, 1]."""
        p = self.encoder.spec.patch_size
        height, width = (side // p * p for side in images.shape[-2:])
        if not (height and width):
            raise ValueError(f"{self.name} features need images of at least {p} x {p} pixels, got {images.shape[-2:]}")
        encoder = self.encoder.to(images.device)
        with without_autocast(images.device):
            return encoder(images[..., :height, :width].float()).hidden_states

    def identity(self) -> str:
        return f"{type(self.encoder).__name__}, mean patch token, weights {weights_hash(self.encoder)}"


class PictureFeatures(EncoderFeatures):
    """Colours, and mean and standard deviation over the patches of every block: what a sentence says of a picture.

    The last block alone has lost the colours. They are the roots of the shares of pixels in 5 x 5 x 5 bins of RGB.

    Args:
        encoder: as for `EncoderFeatures`.
        name: in the metrics' names.
        grid: rows and columns of cells whose mean patches of every second block are features, too: they say where
            things are. 0 leaves them out.
    """

    def __init__(
        self, encoder: Callable[[], VisionEncoder] | None = None, name: str = "picture", grid: NonNegativeInt = 0
    ) -> None:
        super().__init__(encoder, name)
        self.grid = grid

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        blocks = [states.float() for states in self.states(images)]
        statistics = [f(block, dim=1) for f in (torch.mean, torch.std) for block in blocks]
        cells = [self._cells(block, images) for block in blocks[1::2]] if self.grid else []
        return torch.cat([_colors(images), *statistics, *cells], dim=1)

    def _cells(self, states: Tensor, images: Tensor) -> Tensor:
        """The mean of the patches (B, N, D) in each cell, (B, D grid^2)."""
        rows = images.shape[-2] // self.encoder.spec.patch_size
        return F.adaptive_avg_pool2d(to_image(states, rows), self.grid).flatten(1)

    def identity(self) -> str:
        cells = f" and {self.grid} x {self.grid} cells" if self.grid else ""
        return f"{type(self.encoder).__name__}, all blocks{cells}, and colours, weights {weights_hash(self.encoder)}"


def _colors(images: Tensor, bins: int = 5) -> Tensor:
    """Roots of the shares of pixels in each bin of RGB, float32 (B, bins^3), of images (B, 3, H, W) in [0, 1]."""
    place = torch.tensor([bins**2, bins, 1], device=images.device).view(3, 1, 1)
    index = ((images.float() * (bins - 1)).round().long() * place).sum(dim=1).flatten(1)
    ones = torch.ones(index.shape, device=images.device)
    counts = torch.zeros(len(images), bins**3, device=images.device).scatter_add_(1, index, ones)
    return (counts / index.shape[1]).sqrt()


class InceptionFeatures(FeatureExtractor):
    """The 2048 features of the Inception network that the published FIDs were computed with, and its 1008 logits.

    Needs the package torch-fidelity (`pip install "uniflow[fid]"`) and its weights as a local file: nothing is
    downloaded. The file is `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity's release v0.2.0.

    Args:
        weights: the path of that file.
        sha256: first digits of the file's SHA-256.
        name: in the metrics' names.

    Raises:
        ValueError: if the file is not there, or another one.
        ImportError: without torch-fidelity.
    """

    def __init__(self, weights: str, sha256: str = INCEPTION_SHA256, name: str = "inception") -> None:
        self.name = name
        self._hash = check_file(weights, sha256, "Inception weights")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError("Inception features need torch-fidelity: pip install 'uniflow[fid]'") from error
        state = torch.load(weights, map_location="cpu", weights_only=True)
        # torch-fidelity unpickles its file, so it gets a copy of tensors that were read safely.
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "inception.pth"
            torch.save(state, copy)
            network = FeatureExtractorInceptionV3(
                name, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(copy)
            )
        self.network: nn.Module = network.eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        return self.with_logits(images)[0]

    @torch.no_grad()
    def with_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = to_uint8(images)
        network = self.network.to(images.device)
        with without_autocast(images.device):
            features, logits = network(pixels)
        return features.float(), logits.float()

    def identity(self) -> str:
        return f"Inception 2015-12-05, pool 2048, weights {self._hash}"


def check_file(path: str, sha256: str | None, what: str) -> str:
    """The first 12 hex digits of a file's SHA-256.

    Raises:
        ValueError: if there is no such file, or its SHA-256 does not begin with `sha256`.
    """
    if not Path(path).exists():
        raise ValueError(f"{what}: no such file: {path!r}; nothing is downloaded, give the path of a local file")
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if sha256 and not digest.startswith(sha256.lower()):
        raise ValueError(f"{what}: {path!r} has SHA-256 {digest[:12]}..., which should begin with {sha256}")
    return digest[:12]
