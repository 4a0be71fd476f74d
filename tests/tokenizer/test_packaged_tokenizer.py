"""The tokenizer in the package: it is there, small, loads offline, and keeps photographs that training never saw."""

import pytest
import torch
from PIL import Image
from skimage import data as photographs

from uniflow import Tokenizer
from uniflow.cli import main
from uniflow.data.images.transforms import CenterCrop
from uniflow.data.scenes import ScenesDataset
from uniflow.encoders import EmbeddedViT
from uniflow.metrics import psnr
from uniflow.pretrained import DEFAULT, packaged

FOLDER = packaged("embedded")
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained("embedded")


def picture(name):
    return torch.from_numpy(getattr(photographs, name)()).permute(2, 0, 1)


def reconstruction_psnr(tokenizer, image):
    with torch.inference_mode():
        painted = tokenizer.reconstruct(image[None], generator=torch.Generator().manual_seed(0))
    return float(psnr(painted, image[None].float() / 255))


def test_it_is_small_and_has_its_card():
    assert (FOLDER / "model.safetensors").stat().st_size <= 5 * MEGABYTE
    card = (FOLDER / "README.md").read_text()
    for word in ("benchmarks/embedded_tokenizer.py", "Licence: Apache-2.0", "held-out", "dB"):
        assert word in card, word


def test_its_float16_weights_are_loaded_in_float32_and_evaluate(tokenizer):
    assert {tensor.dtype for tensor in tokenizer.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert not tokenizer.training
    assert DEFAULT == "embedded"
    assert tokenizer.encoder.spec.image_size == 256


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (200, 72)])
def test_any_size(tokenizer, size):
    images = torch.rand(2, 3, *size)
    latents = tokenizer.encode(images, normalize=True)
    assert latents.shape == (2, 64, -(-size[0] // 8), -(-size[1] // 8))
    assert tokenizer.reconstruct(images).shape == images.shape


# Measured 2026-11-25: 36.0, 41.3 and 36.6 dB.
@pytest.mark.parametrize(("name", "at_256"), [("astronaut", 35.5), ("chelsea", 40.5), ("coffee", 36.0)])
def test_photographs_at_its_own_size(tokenizer, name, at_256):
    assert reconstruction_psnr(tokenizer, CenterCrop(256)(picture(name))) >= at_256


@pytest.mark.parametrize(
    "name", ["astronaut", *(pytest.param(n, marks=pytest.mark.slow) for n in ("chelsea", "coffee"))]
)
def test_photographs_at_twice_its_own_size(tokenizer, name):
    """The same pixels as part of a larger picture: unseen positions cost next to nothing."""
    doubled = CenterCrop(512)(picture(name))
    with torch.inference_mode():
        noise = torch.zeros(1, 3, 512, 512)
        whole = tokenizer.reconstruct(doubled[None], noise=noise)
        alone = tokenizer.reconstruct(doubled[None, :, 256:, 256:], noise=noise[..., 256:, 256:])
    target = doubled[None, :, 256:, 256:].float() / 255
    assert psnr(whole[..., 256:, 256:], target) >= psnr(alone, target) - 0.5


def test_its_features_are_those_of_the_encoder_it_started_from(tokenizer):
    scenes = ScenesDataset(seed=7, length=8)
    images = torch.stack([scenes[i]["image"] for i in range(8)])
    with torch.inference_mode():
        own, original = (encoder(images).hidden_states[-1] for encoder in (tokenizer.encoder, EmbeddedViT().eval()))
    assert torch.cosine_similarity(own, original, dim=-1).mean() > 0.97


def test_reconstruct_takes_it_by_default(tmp_path, capsys):
    Image.fromarray(photographs.astronaut()[:96, 200:310]).save(tmp_path / "face.png")
    assert main(["reconstruct", str(tmp_path / "face.png"), "--out", str(tmp_path / "out"), "--size", "0"]) == 0
    assert "110 x 96" in capsys.readouterr().out
    assert (tmp_path / "out" / "face.png").is_file()


def test_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"embedded is not a tokenizer: it has no config.json"):
        Tokenizer.from_pretrained("embedded")


@pytest.mark.parametrize("name", ["nothing", "../encoders/weights", "organisation/name", "", "__pycache__"])
def test_no_other_name_leads_into_the_package(name):
    assert packaged(name) is None
