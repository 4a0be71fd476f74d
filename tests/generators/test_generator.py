"""The model that makes images: samples of their own, its folder, and what is refused."""

import json
import shutil

import pytest
import torch

from uniflow import Tokenizer
from uniflow.conditions import LabelCondition, NoCondition
from uniflow.core.tensors import weights_hash
from uniflow.generators import DiT, Generator
from uniflow.generators.cached import check_cached, latent_identity


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained("embedded")
    condition = LabelCondition(3, width=8)
    network = DiT(tokenizer.bottleneck.spec, condition.spec, width=16, depth=1, num_heads=2, steps=2)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return Generator(tokenizer, network, condition, (2, 3)).eval()


def test_images_have_the_grids_size_and_are_told_what_to_show(model):
    images = model.sample(torch.tensor([0, 1]), seed=3)
    assert images.shape == (2, 3, 16, 24)
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.equal(images, model.sample(torch.tensor([1, 1]), seed=3))
    assert not torch.equal(images, model.sample(torch.tensor([0, 1]), seed=4))
    assert not torch.equal(images, model.sample(torch.tensor([0, 1]), seed=3, guidance=4.0))
    assert not torch.equal(images, model.sample(torch.tensor([0, 1]), seed=3, steps=3))
    assert model.sample(count=2).shape == images.shape


def test_an_image_depends_on_its_number_alone(model):
    values = torch.tensor([0, 1, 2, 0, 1])
    whole = model.sample(values, seed=1)
    torch.testing.assert_close(model.sample(values, seed=1, batch_size=2), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.sample(values[3:], seed=1, first=3), whole[3:], rtol=0, atol=1e-5)


def test_a_folder_is_all_that_is_needed(model, tmp_path):
    model.save_pretrained(tmp_path / "generator")
    shutil.move(tmp_path / "generator", tmp_path / "elsewhere")
    again = Generator.from_pretrained(tmp_path / "elsewhere")
    assert not again.training
    values = torch.tensor([2, 0])
    torch.testing.assert_close(again.sample(values), model.sample(values), rtol=0, atol=1e-6)


def test_what_is_not_a_generator_is_refused_in_one_line(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a generator: it has no config\.json"):
        Generator.from_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="does not hold a generator"):
        Generator.from_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "generator"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for change in ({"grid": [0, 2]}, {"format": 9}, {"network": {"class_path": "os.system"}}, {"condition": None}):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=str(folder)) as caught:
            Generator.from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_latents_of_another_kind_or_without_statistics_are_refused(model):
    condition, other = NoCondition(), Tokenizer.from_pretrained("embedded")
    network = DiT(type(other.bottleneck.spec)(5, 8), condition.spec, width=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="the generator makes"):
        Generator(other, network, condition, (2, 2))
    other.clear_latent_statistics()
    with pytest.raises(ValueError, match="has no latent statistics, which a generator needs"):
        Generator(other, model.network, condition, (2, 2))


@pytest.mark.parametrize(("values", "count"), [(None, None), (None, 0), (torch.tensor([0, 1]), 3)])
def test_nothing_to_sample_is_said(model, values, count):
    with pytest.raises(ValueError, match="nothing to sample"):
        model.sample(values, count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "0123456789ab"}, "of another tokenizer .weights 0123456789ab. than mine"),
        ({"spec": {"channels": 4, "patch_size": 8}}, "the cached latents are {'channels': 4"),
        ({"statistics": None}, "normalised by other statistics than those of mine"),
    ],
)
def test_cached_latents_go_with_their_tokenizer(model, change, message):
    identity = json.loads(json.dumps(latent_identity(model.tokenizer)))
    check_cached(identity, model.tokenizer, "mine")
    check_cached({**identity, "weights": weights_hash(model.tokenizer)}, model.tokenizer, "mine")  # a file of before
    with pytest.raises(ValueError, match=message):
        check_cached({**identity, **change}, model.tokenizer, "mine")
    with pytest.raises(ValueError, match="has to say whose they are"):
        check_cached(None, model.tokenizer, "mine")
