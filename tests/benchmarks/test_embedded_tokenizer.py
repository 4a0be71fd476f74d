"""benchmarks/embedded_tokenizer.py: its training pictures, what it packages, what it measures."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import FLOW

from benchmarks import embedded_tokenizer as benchmark
from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.encoders import EmbeddedViT


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    encoder = EmbeddedViT(weights=None, embed_dim=16, depth=1, num_heads=2)
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    made = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec, start="zero")).eval()
    torch.nn.init.normal_(made.decoder.head.final_proj.weight, std=0.1)
    return made


@pytest.fixture
def photographs(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "photographs" / split).mkdir(parents=True)
        Image.effect_noise((420, 300), 60).convert("RGB").save(tmp_path / "photographs" / split / "noise.jpg")
    return tmp_path / "photographs"


def test_the_training_pictures(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(benchmark, "SCENES", 2)
    benchmark.make_pictures(photographs, tmp_path / "pictures")
    train = sorted(path.name for path in (tmp_path / "pictures" / "train").iterdir())
    assert [name for name in train if name.startswith("scene_")] == ["scene_128_000.jpg", "scene_256_000.jpg"]
    # Short sides of 160, 256 and 300 pixels: never enlarged.
    assert {path.size for path in map(Image.open, (tmp_path / "pictures" / "train").glob("noise_*"))} == {
        (224, 160),
        (256, 256),
    }
    for split in ("val", "test"):
        assert Image.open(tmp_path / "pictures" / split / "noise_00.jpg").size == (420, 300)
    with pytest.raises(ValueError, match="no photographs in"):
        benchmark.make_pictures(tmp_path / "nothing", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_package_is_float16_and_the_same_at_its_own_size(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "fitted")
    benchmark.package(tmp_path / "fitted", tmp_path / "packaged")
    stored = load_file(tmp_path / "packaged" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    packaged = Tokenizer.from_pretrained(tmp_path / "packaged")
    assert packaged.encoder.spec.image_size == benchmark.OWN_SIZE
    images = torch.rand(1, 3, benchmark.OWN_SIZE, benchmark.OWN_SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(packaged.encode(images), tokenizer.encode(images), atol=0.02, rtol=0.02)
    with torch.no_grad():
        tokenizer.decoder.head.final_proj.bias.fill_(1e6)
    tokenizer.save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match=r"decoder.head.final_proj.bias does not fit into float16"):
        benchmark.package(tmp_path / "large", tmp_path / "packaged")


def test_what_is_measured(tokenizer, photographs, monkeypatch):
    monkeypatch.setattr(benchmark, "SIZES", (32, 64))
    monkeypatch.setattr(benchmark, "WIDE", (32, 48))
    results = benchmark.measure(tokenizer, photographs / "test")
    assert list(results) == ["photographs", "psnr_32", "psnr_64", "psnr_64_in_quarters", "psnr_32x48"]
    assert results["photographs"] == 1
    assert results["psnr_64"] != results["psnr_64_in_quarters"]  # a quarter sees nothing of the others
