"""Normalised latents: the statistics that a tokenizer keeps, and what it does with them."""

import copy
import json

import pytest
import torch
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.tokenizer.latent_statistics import MIN_STD

MEAN, STD = [0.5, -2.0, 0.0, 3.0], [1.5, 0.25, 2.0, 1.0]


def tokenizer(statistics=True):
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=4)
    made = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).eval()
    with torch.no_grad():  # a fresh decoder paints the same grey whatever its latents
        for parameter in made.decoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if statistics:
        made.set_latent_statistics(MEAN, STD, 1000)
    return made


def test_normalised_latents_are_shifted_and_scaled_by_channel_and_decoding_undoes_it():
    model, images, noise = tokenizer(), torch.rand(2, 3, 16, 24), torch.randn(2, 3, 16, 24)
    plain, normal = model.encode(images), model.encode(images, normalize=True)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        torch.testing.assert_close(normal[:, channel], (plain[:, channel] - mean) / std)
    torch.testing.assert_close(model.denormalize_latents(normal), plain)
    decoded = model.decode(normal, noise=noise, normalized=True)
    torch.testing.assert_close(decoded, model.decode(plain, noise=noise), atol=1e-5, rtol=0)
    assert not torch.allclose(decoded, model.decode(normal, noise=noise), atol=1e-3)


def test_statistics_of_the_data_give_mean_0_and_variance_1():
    model = tokenizer(statistics=False)
    latents = model.encode(torch.rand(16, 3, 32, 32))
    values = latents.transpose(0, 1).flatten(1)
    model.set_latent_statistics(values.mean(dim=1), values.std(dim=1, correction=0), values.shape[1])
    normal = model.normalize_latents(latents).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normal.mean(dim=1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std(dim=1, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_arithmetic_is_float32_under_autocast_and_in_a_bfloat16_model():
    model, images = tokenizer(), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        plain, normal = model.encode(images), model.encode(images, normalize=True)
        assert plain.dtype == torch.bfloat16
        assert normal.dtype == torch.float32
        assert torch.equal(normal, model.normalize_latents(plain.float()))
        torch.testing.assert_close(model.denormalize_latents(normal), plain.float(), atol=1e-6, rtol=1e-6)
    half = copy.deepcopy(model).bfloat16()
    normal = half.encode(images, normalize=True)
    assert normal.dtype == torch.float32
    assert half.denormalize_latents(normal).dtype == torch.bfloat16
    assert half.decode(normal, normalized=True).shape == images.shape
    assert half.latent_statistics == model.latent_statistics  # as measured, not as rounded


def test_a_channel_that_never_moves_is_divided_by_the_floor():
    model = tokenizer()
    model.set_latent_statistics(MEAN, [0.0, 1.0, 1.0, 1.0], 10)
    latents = torch.tensor(MEAN).view(1, 4, 1, 1).repeat(1, 1, 2, 2)
    latents[0, 0, 0, 0] += 1e-3
    normal = model.normalize_latents(latents)
    assert normal.isfinite().all()
    assert normal[0, 0, 0, 1] == 0
    assert normal[0, 0, 0, 0].item() == pytest.approx(1e-3 / MIN_STD, rel=1e-3)
    torch.testing.assert_close(model.denormalize_latents(normal), latents)


def test_without_statistics_the_command_that_measures_them_is_named():
    model = tokenizer(statistics=False)
    assert model.latent_mean is None
    assert "latent_statistics" not in model.config()
    latents = model.encode(torch.rand(1, 3, 16, 16))
    for call in (
        lambda: model.encode(torch.rand(1, 3, 16, 16), normalize=True),
        lambda: model.decode(latents, normalized=True),
    ):
        with pytest.raises(ValueError, match="`uniflow stats`"):
            call()


def test_they_are_saved_with_the_config_and_not_with_the_weights(tmp_path):
    model = tokenizer()
    assert not {"latent_mean", "latent_std"} & model.state_dict().keys()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["latent_statistics"] == {"mean": MEAN, "std": STD, "count": 1000}
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.latent_statistics == model.latent_statistics
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded.encode(images, normalize=True), model.encode(images, normalize=True))
    # A folder from before there were statistics.
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in saved.items() if k != "latent_statistics"}))
    assert Tokenizer.from_pretrained(tmp_path).latent_statistics is None


def test_they_move_with_the_model_and_can_be_forgotten():
    model = tokenizer()
    assert copy.deepcopy(model).to("meta").latent_mean.device.type == "meta"
    assert copy.deepcopy(model).latent_statistics == model.latent_statistics
    model.clear_latent_statistics()
    assert model.latent_statistics is None
    assert model.latent_std is None


@pytest.mark.parametrize(
    ("mean", "std", "count", "message"),
    [
        (MEAN[:3], STD, 1, "4 means and standard deviations, one for each channel, got 3 and 4"),
        (MEAN, [1.0, 1.0, 1.0, -1.0], 1, "no standard deviation negative"),
        ([float("nan"), 0.0, 0.0, 0.0], STD, 1, "must be finite"),
        (MEAN, STD, 0, "count at least 1"),
    ],
)
def test_statistics_that_cannot_be_are_refused(mean, std, count, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(statistics=False).set_latent_statistics(mean, std, count)


@pytest.mark.parametrize("entry", [[1, 2], {"mean": MEAN, "std": STD}, {"mean": 1, "std": STD, "count": 1}, "none"])
def test_a_config_with_a_malformed_entry_is_refused_in_one_line(entry):
    model = tokenizer()
    with pytest.raises(ValueError, match="latent_statistics must be") as caught:
        Tokenizer.from_config(model.config() | {"latent_statistics": entry})
    assert "\n" not in str(caught.value)
