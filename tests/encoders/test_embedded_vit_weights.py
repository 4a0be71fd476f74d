"""The packaged encoder is what its card says."""

import re
from importlib.resources import files

import torch
from torch import Tensor

from uniflow.data.scenes import ScenesDataset, collate_scenes
from uniflow.encoders import EmbeddedViT, SceneViT, VisionEncoder
from uniflow.metrics import linear_probe, linear_psnr

WEIGHTS = files("uniflow.encoders") / "weights"
CARD = (WEIGHTS / "embedded_vit.md").read_text(encoding="utf-8")
TOLERANCE = 0.06  # for a probe that is fitted on fewer pictures than the card's, and scored on few


def test_probe_reaches_what_the_card_says() -> None:
    stated = re.search(r"linear probe[^|]*\|\s*([\d.]+) %", CARD, flags=re.IGNORECASE)
    assert stated, "embedded_vit.md has no table row '| linear probe ... | 90.0 % |'"
    encoder = EmbeddedViT(tune="frozen").eval()
    train, test = (_mean_tokens(encoder, *_scenes(*part)) for part in ((101, 300), (102, 200)))
    assert linear_probe(*train, *test) > float(stated[1]) / 100 - TOLERANCE


def test_the_first_layer_keeps_the_picture() -> None:
    """Rank 64 as in the card; fewer pictures to fit on."""
    stated = re.search(r"scenes[^|]*\|\s*([\d.]+)", CARD[CARD.index("| layer") :], flags=re.IGNORECASE)
    assert stated, "embedded_vit.md has no table row '| scenes ... | 29.0 | ...' below '| layer'"
    train, test = _scenes(201, 60)[0], _scenes(202, 40)[0]
    decibels = _linear_psnr(EmbeddedViT(tune="frozen").eval(), train, test)
    assert decibels > float(stated[1]) - 1
    assert decibels > _linear_psnr(SceneViT(tune="frozen").eval(), train, test) + 5


def _scenes(stream: int, length: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels of scenes that training, validation and test never see."""
    scenes = ScenesDataset(12345, length, stream=stream)
    batch = collate_scenes([scenes[i] for i in range(length)])
    return batch["image"], batch["label"]


@torch.no_grad()
def _mean_tokens(encoder: VisionEncoder, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([encoder(part).hidden_states[-1].mean(dim=1) for part in images.split(100)]), labels


@torch.no_grad()
def _linear_psnr(encoder: VisionEncoder, train: Tensor, test: Tensor) -> float:
    """From the first layer, at rank 64."""
    tokens = [torch.cat([encoder(p).hidden_states[0] for p in images.split(100)]) for images in (train, test)]
    return linear_psnr(tokens[0], train, tokens[1], test, patch_size=8)
