"""Features of clips for a Frechet distance between sets of clips (FVD, arXiv 1812.01717).

Tested with small random networks of the same interfaces. The published weights have not been run with this code yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from uniflow.core.errors import first_line
from uniflow.core.pixels import to_unit_range
from uniflow.layers.precision import without_autocast
from uniflow.metrics.features import check_file

SHORTEST = 10  # frames; the Inception network halves time four times


class VideoFeatures(ABC):
    """Clips -> one feature vector each, by a frozen network from a local file.

    Attributes:
        name: short name in metrics' names.
        frames: the number of frames that clips must have; None: `SHORTEST` or more.
    """

    name: str
    frames: int | None = None

    def __call__(self, clips: Tensor) -> Tensor:
        """Clips uint8 (B, T, 3, H, W) -> features (B, D), float32, on the clips' device.

        They are taken as files hold them, so that floats between the grey levels do not count.

        Raises:
            ValueError: for another type or number of frames.
        """
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[2] != 3:
            raise ValueError(f"{self.name} reads clips uint8 (B, T, 3, H, W), got {clips.dtype} {tuple(clips.shape)}")
        count = clips.shape[1]
        if count < SHORTEST or (self.frames is not None and count != self.frames):
            wanted = f"{SHORTEST} or more" if self.frames is None else f"{self.frames}"
            raise ValueError(f"{self.name} reads clips of {wanted} frames, got {count}: set the data's length")
        with torch.no_grad(), without_autocast(clips.device):
            return self.compute(clips).float()

    @abstractmethod
    def compute(self, clips: Tensor) -> Tensor:
        """As `__call__`, for checked clips."""

    @abstractmethod
    def identity(self) -> str:
        """Network and a hash of its weights, for the evaluation's fingerprint."""


class I3DFeatures(VideoFeatures):
    """The features that most published FVDs are computed with: an I3D network as a TorchScript file.

    Made for the file `i3d_torchscript.pt` that comes with the code of StyleGAN-V (arXiv 2112.14683), which resizes and
    scales pixels itself and is called with `rescale`, `resize` and `return_features`. TorchScript is a program: it can
    only compute, but name a `sha256` for a file from elsewhere.

    Args:
        path: the file.
        sha256: first digits of its SHA-256; None takes any file, and the fingerprint tells them apart.
        name: in metrics' names.

    Raises:
        ValueError: if there is no such file, it is another one, or not TorchScript.
    """

    def __init__(self, path: str, sha256: str | None = None, name: str = "i3d") -> None:
        self.name, self._hash = name, check_file(path, sha256, "I3D weights")
        try:
            self.network = torch.jit.load(path, map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"I3D weights: {path!r} is not a TorchScript file ({first_line(error)[:200]})") from error

    def compute(self, clips: Tensor) -> Tensor:
        network = self.network.to(clips.device)
        return network(clips.transpose(1, 2).float(), rescale=True, resize=True, return_features=True)

    def identity(self) -> str:
        return f"I3D TorchScript, weights {self._hash}"


class VideoMAEFeatures(VideoFeatures):
    """The mean token of a VideoMAE (arXiv 2203.12602) from a folder of transformers, as arXiv 2404.12391 proposes.

    Frames are resized to the network's size by their short side, and cut in the middle.

    Args:
        path: the folder, with `config.json` and `model.safetensors`.
        sha256: first digits of the SHA-256 of `model.safetensors`; None takes any.
        name: in metrics' names.

    Raises:
        ValueError: if there is no such folder or file, it is another one, or not a VideoMAE.
    """

    KIND: ClassVar[str] = "videomae"

    def __init__(self, path: str, sha256: str | None = None, name: str = "videomae") -> None:
        from transformers import AutoConfig, VideoMAEModel

        self.name = name
        self._hash = check_file(str(Path(path) / "model.safetensors"), sha256, "VideoMAE weights")
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} holds no config of transformers ({first_line(error)[:200]})") from error
        if config.model_type != self.KIND:
            raise ValueError(f"{path} holds a {config.model_type}, not a {self.KIND}")
        network = VideoMAEModel.from_pretrained(path, config=config, local_files_only=True, use_safetensors=True)
        self.network = network.eval().requires_grad_(False)
        self.frames = int(config.num_frames)
        self.size = int(config.image_size)

    def compute(self, clips: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        pixels = functional.resize(clips.flatten(0, 1), [self.size], antialias=True)
        pixels = functional.center_crop(pixels, [self.size, self.size])
        mean, std = (pixels.new_tensor(v, dtype=torch.float32) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        scaled = (to_unit_range(pixels) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        network = self.network.to(clips.device)
        return network(scaled.unflatten(0, clips.shape[:2])).last_hidden_state.mean(dim=1)

    def identity(self) -> str:
        return f"VideoMAE mean token, {self.frames} frames of {self.size} px, weights {self._hash}"
