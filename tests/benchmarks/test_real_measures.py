"""What the benchmark on real parts measures, against closed forms."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import real_measures as measures
from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.decoders import RegressionDecoder
from uniflow.encoders import DINOv2

TINY = {"weights": None, "depth": 2, "embed_dim": 32, "num_heads": 2, "image_size": 28}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_r2_of_a_linear_case_is_one(generator):
    weight = torch.randn(8, 20, generator=generator)
    train, test = (torch.randn(count, 8, generator=generator) for count in (300, 100))
    found = measures.linear_r2((train, train @ weight + 3), (test, test @ weight + 3))
    assert 1 - 1e-6 < found <= 1


def test_r2_of_noise_is_about_zero_and_falls_with_too_few_rows(generator):
    inputs, targets = (torch.randn(6000, 8, generator=generator) for _ in range(2))
    assert abs(measures.linear_r2((inputs[:5000], targets[:5000]), (inputs[5000:], targets[5000:]))) < 0.01
    assert measures.linear_r2((inputs[:10], targets[:10]), (inputs[5000:], targets[5000:])) < -0.5


def test_r2_is_the_share_of_the_variance(generator):
    signal, noise = (torch.randn(20000, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    halves = (signal[:10000], (signal + noise)[:10000]), (signal[10000:], (signal + noise)[10000:])
    assert measures.linear_r2(*halves) == pytest.approx(0.5, abs=0.02)
    # A channel in other units weighs by its variance, a constant one not at all.
    wide = [(x, torch.cat([y, 10 * x, torch.ones_like(x)], dim=1)) for x, y in halves]
    assert measures.linear_r2(*wide) == pytest.approx(101 / 102, abs=0.001)


def test_r2_refuses_what_does_not_go_together(generator):
    pairs = torch.zeros(3, 2), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="test set has 0 inputs"):
        measures.linear_r2(pairs, (torch.zeros(0, 2), torch.zeros(0, 2)))
    with pytest.raises(ValueError, match="train set has 3 inputs and 2 targets"):
        measures.linear_r2((pairs[0], pairs[1][:2]), pairs)


def test_tokens_are_normalised_and_latents_stand_beside_their_own(generator):
    encoder = DINOv2("s14", **TINY).eval()
    images = torch.rand(3, 3, 28, 56, generator=generator)
    tokens = measures.normalised_tokens(encoder, images)
    assert tokens.shape == (3, 32, 2, 4)
    assert tokens.mean(dim=1).abs().max() < 1e-5
    assert tokens.var(dim=1, correction=0).sub(1).abs().max() < 1e-2
    for merge in (1, 2):
        bottleneck = MLPBottleneck(encoder.spec, channels=5, merge=merge)
        decoder = RegressionDecoder(bottleneck.spec, width=32, num_heads=2, global_depth=1, head_depth=1)
        tokenizer = Tokenizer(encoder, bottleneck, decoder).eval()
        latents, targets = measures.latents_and_targets(tokenizer, encoder, iter(images.split(2)))
        assert latents.shape == (3 * 8 // merge**2, 5)
        assert torch.allclose(targets[-1], tokens[2, :, -merge:, -merge:].mean(dim=(1, 2)), atol=1e-5)


def test_crops_are_in_order_and_random_ones_repeat(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", np.full((30, 40, 3), 50 * number))
    (tmp_path / "3.png").write_bytes(b"nothing")  # `uniflow test` names it
    found = torch.cat(list(measures.crops(tmp_path, 28, batch_size=2)))
    assert found[:, 0, 0, 0].tolist() == [0, 50, 100]
    save(tmp_path / "0.png", np.random.default_rng(0).integers(0, 255, (90, 90, 3)))
    first, again = (torch.cat(list(measures.random_crops(tmp_path, 28, count=2))) for _ in range(2))
    assert len(first) == 6
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_classes_that_differ_are_told_apart_and_random_ones_are_not(tmp_path):
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 8)):
        for number in range(count):
            for name, base in (("dark", 0), ("light", 155)):
                save(tmp_path / "far" / split / name / f"{number}.png", base + draw.integers(0, 100, (28, 28, 3)))
                save(tmp_path / "same" / split / name / f"{number}.png", draw.integers(0, 100, (28, 28, 3)))
    torch.manual_seed(0)
    encoder = DINOv2("s14", **TINY).eval()
    assert measures.classify(encoder, tmp_path / "far", 28) == {"knn": 1.0, "probe": 1.0}
    assert all(0.1 < accuracy < 0.9 for accuracy in measures.classify(encoder, tmp_path / "same", 28).values())
    (tmp_path / "empty" / "train" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "test").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        measures.classify(encoder, tmp_path / "empty", 28)
