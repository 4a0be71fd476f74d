"""`StateCache`: what comes from disk is what the encoder gave; a tokenizer learns the same with it."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import ENCODER, fit, tiny_scenes, tiny_task
from torch import Tensor

from uniflow.bottleneck import MLPBottleneck
from uniflow.core import disk
from uniflow.core.specs import EncoderOutput
from uniflow.features import StateCache, StatesNeeded
from uniflow.features import state_cache as module


class Counted:
    """A frozen encoder that counts its calls."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder, self.calls = ENCODER(tune="frozen").eval(), 0
        self.spec = self.encoder.spec

    def __call__(self, images: Tensor) -> EncoderOutput:
        self.calls += 1
        return self.encoder(images)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


ALL = StatesNeeded((0, 1, 2, 3), prefix=True)


def cache_of(folder: Path, **options: object) -> StateCache:
    cache = StateCache(str(folder), **options)
    cache.identify(weights="abc")
    return cache


def test_the_second_time_everything_comes_from_disk(tmp_path: Path, images: Tensor) -> None:
    encoder, expected = Counted(), Counted()(images)
    for _ in range(2):  # the second time by another object, as after a restart
        cache = cache_of(tmp_path)
        for batch in (images, images.flip(0)):
            output = cache.encode(batch, encoder, encoder.spec, ALL)
    assert encoder.calls == 1
    assert cache.share_found == 1
    assert output.grid == expected.grid == (4, 6)
    for stored, computed in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(stored.flip(0), computed)
    for stored, computed in zip(output.prefix_tokens, expected.prefix_tokens, strict=True):
        assert torch.equal(stored.flip(0), computed)
    assert torch.equal(output.embeddings.flip(0), expected.embeddings)


def test_only_what_is_needed_is_kept(tmp_path: Path, images: Tensor) -> None:
    encoder, cache = Counted(), cache_of(tmp_path)
    needed = StatesNeeded((1,))
    cache.encode(images, encoder, encoder.spec, needed)
    output = cache.encode(images, encoder, encoder.spec, needed)
    assert torch.equal(output.hidden_states[1], encoder(images).hidden_states[1])
    assert output.hidden_states[0].shape == output.hidden_states[1].shape
    with pytest.raises(RuntimeError, match="meta"):
        output.hidden_states[0] + torch.ones(32)
    assert output.embeddings is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_half_the_space(tmp_path: Path, images: Tensor, dtype: str) -> None:
    encoder, sizes = Counted(), []
    for kind in ("exact", dtype):
        cache = cache_of(tmp_path / kind, dtype=kind)
        cache.encode(images, encoder, encoder.spec, ALL)
        output = cache.encode(images, encoder, encoder.spec, ALL)
        sizes.append(sum(file.stat().st_size for file in (tmp_path / kind).rglob("*.safetensors")))
    assert sizes[1] < 0.75 * sizes[0]
    assert output.hidden_states[0].dtype == torch.float32
    torch.testing.assert_close(output.hidden_states[0], encoder(images).hidden_states[0], rtol=1e-2, atol=1e-2)
    assert not torch.equal(output.hidden_states[0], encoder(images).hidden_states[0])


def test_other_weights_layers_and_sizes_do_not_meet(tmp_path: Path, images: Tensor) -> None:
    encoder, cache = Counted(), cache_of(tmp_path)
    cache.encode(images, encoder, encoder.spec, ALL)
    other = cache_of(tmp_path)
    other.identify(weights="another")
    other.encode(images, encoder, encoder.spec, ALL)
    cache.encode(images, encoder, encoder.spec, StatesNeeded((0,)))
    cache.encode(images[..., :32], encoder, encoder.spec, ALL)
    cache.encode(images / 255, encoder, encoder.spec, ALL)
    assert encoder.calls == 5


def test_what_a_power_cut_damaged_is_made_again(tmp_path: Path, images: Tensor) -> None:
    encoder, cache = Counted(), cache_of(tmp_path)
    cache.encode(images, encoder, encoder.spec, ALL)
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    for _ in range(2):
        output = cache.encode(images, encoder, encoder.spec, ALL)
    assert encoder.calls == 2
    assert torch.equal(output.hidden_states[2], encoder(images).hidden_states[2])


def test_beyond_the_limit_states_are_computed(tmp_path: Path, images: Tensor) -> None:
    encoder, cache = Counted(), cache_of(tmp_path, limit_gb=4e-5)
    with pytest.warns(UserWarning, match="limit_gb .* is used up"):
        cache.encode(images, encoder, encoder.spec, ALL)
    assert 0 < len(list(tmp_path.rglob("*.safetensors"))) < 4
    output = cache.encode(images, encoder, encoder.spec, ALL)
    assert encoder.calls == 2
    assert output.hidden_states[0].device.type == "cpu"


def test_a_full_disk_does_not_end_the_training(tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    encoder, cache = Counted(), cache_of(tmp_path)
    with pytest.warns(UserWarning, match="no space left"):
        cache.encode(images, encoder, encoder.spec, ALL)
    assert disk.is_full(OSError(28, ""), tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_all_processes_compute_if_one_has_to(tmp_path: Path, images: Tensor) -> None:
    encoder, cache = Counted(), cache_of(tmp_path)
    cache.encode(images, encoder, encoder.spec, ALL)
    cache.encode(images, encoder, encoder.spec, ALL, agree=lambda computes: True)
    assert encoder.calls == 2


READS_TWO = partial(MLPBottleneck, channels=8, layers=["embeddings", -1])


@pytest.mark.parametrize(
    "task",
    [
        {"encoder": partial(ENCODER, tune="frozen"), "bottleneck": READS_TWO, "latent_feature_weight": 0.1},
        {"encoder": partial(ENCODER, tune="frozen")},
        {"encoder": ENCODER, "bottleneck": READS_TWO, "latent_feature_weight": 0.1, "distill_prefix_tokens": True},
    ],
    ids=["frozen", "frozen, last layer", "distilled"],
)
def test_a_tokenizer_learns_the_same(tmp_path: Path, task: dict) -> None:
    data = {"fresh_epochs": False, "train_length": 16}
    plain = fit(tiny_task(**task), tiny_scenes(**data), tmp_path / "plain", steps=6)[1]
    cache = StateCache(str(tmp_path / "states"))
    cached = fit(tiny_task(**task, state_cache=cache), tiny_scenes(**data), tmp_path / "cached", steps=6)[1]
    assert cached == pytest.approx(plain, rel=1e-4)
    assert cache.share_found > 0.3  # batches are drawn anew: one is found when all of its images are there
    first = sum(1 for _ in (tmp_path / "states").rglob("*.safetensors"))
    assert first == 16


def test_data_that_does_not_repeat_is_refused(tmp_path: Path) -> None:
    task = tiny_task(state_cache=StateCache(str(tmp_path)))
    with pytest.raises(ValueError, match=r"new training images .* set data.crops_per_image"):
        fit(task, tiny_scenes(fresh_epochs=True), tmp_path)
