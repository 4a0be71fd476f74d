"""Weights of LPIPS for tests: a random backbone with LPIPS's own heads, which torchmetrics ships."""

from pathlib import Path

import torch
import torchmetrics.functional.image.lpips
import torchvision
from safetensors.torch import save_file

SHORT = {"vgg16": "vgg", "alexnet": "alex"}  # torchmetrics' names
HEADS = Path(torchmetrics.functional.image.lpips.__file__).parent / "lpips_models"


def random_backbone(backbone: str) -> dict[str, torch.Tensor]:
    """The convolutions of torchvision's `backbone`, with its keys, drawn so that no layer falls silent."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, backbone)(weights=None).state_dict()
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, tensor in shapes.items():
        if name.startswith("features."):
            scale = (2 / tensor[0].numel()) ** 0.5 if name.endswith("weight") else 0.1
            tensors[name] = torch.randn(tensor.shape, generator=generator) * scale
    return tensors


def write_lpips(path: Path, backbone: str) -> str:
    """Write what `Perceptual.weights` takes; returns the path."""
    heads = torch.load(HEADS / f"{SHORT[backbone]}.pth", map_location="cpu", weights_only=True)
    save_file(random_backbone(backbone) | heads, path)
    return str(path)
