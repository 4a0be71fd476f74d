"""Two processes that share one sharded model: the same training as one process with the doubled batch."""

import copy
import shutil
from functools import partial

import pytest
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from parallel import ForkedFSDP2, Record, RepeatableFlow, StopAfter, forked, mean_losses, needs_sharding
from tiny import ENCODER, REGRESSION, fit, same, tiny_scenes, tiny_task
from torch.multiprocessing import ProcessRaisedException

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck, MultiVQBottleneck, VQBottleneck
from uniflow.callbacks import EMA, ImageGrid, LatentStatistics, Monitor, TokenizerExport
from uniflow.cli.checkpoint import LastCheckpoint
from uniflow.decoders import ConvDecoder, ViTDecoder
from uniflow.features import StateCache
from uniflow.losses import Adversarial
from uniflow.training import Muon

pytestmark = needs_sharding
FLOW = partial(RepeatableFlow, width=32, num_heads=2, global_depth=1, flow_depth=2, prediction="data")


def run(folder, processes, *, stop=None, task=None, strategy=None, **kwargs):
    """Train on Scenes, 8 pictures a step over all processes, and return the mean losses."""
    folder.mkdir(exist_ok=True)
    if processes > 1 or strategy:
        kwargs |= {"strategy": strategy or ForkedFSDP2(), "devices": processes}
    callbacks = [
        Record(folder), LastCheckpoint(every_n_train_steps=5), EMA(0.9), Monitor(), ImageGrid(2),
        LatentStatistics(), TokenizerExport(), StopAfter(stop),
    ]  # fmt: skip
    options = {"enable_checkpointing": True, "limit_val_batches": 1.0, "val_check_interval": 4} | kwargs
    task = task or tiny_task(decoder=FLOW, bottleneck=partial(MLPBottleneck, channels=8))
    fit(task, tiny_scenes(batch_size=8 // processes, train_length=96), folder, steps=10, callbacks=callbacks,
        **options)  # fmt: skip
    return mean_losses(folder, processes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process without sharding, and its losses."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return folder, run(folder, 1)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The same run, sharded over two processes, and its losses."""
    folder = tmp_path_factory.mktemp("runs") / "sharded"
    return folder, run(folder, 2)


def close(left, right, atol=2e-4):
    """Whether two tokenizers have nearly the same weights: Adam divides by the root of tiny squares."""
    right = dict(right.state_dict())
    return all((value - right[name]).abs().mean() < atol for name, value in left.state_dict().items())


def test_losses_are_those_of_one_process(alone, sharded):
    assert sharded[1] == pytest.approx(alone[1], abs=1e-5)


def test_exported_tokenizer_is_that_of_one_process(alone, sharded):
    left, right = (Tokenizer.from_pretrained(folder / "tokenizer") for folder, _ in (alone, sharded))
    assert left.config() | {"latent_statistics": None} == right.config() | {"latent_statistics": None}
    assert right.latent_statistics["count"] == left.latent_statistics["count"]
    assert close(left, right)


def test_checkpoint_in_pieces_holds_the_averaged_tokenizer(sharded):
    folder, _ = sharded
    assert sorted(p.name for p in (folder / "last.ckpt").iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt",
    ]  # fmt: skip
    exported, read = (Tokenizer.from_pretrained(folder / name) for name in ("tokenizer", "last.ckpt"))
    assert same(exported.encoder.state_dict(), read.encoder.state_dict())
    assert same(exported.decoder.state_dict(), read.decoder.state_dict())


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_with_any_number_of_processes(tmp_path, alone, processes):
    folder = tmp_path / "killed"
    first = run(folder, 2, stop=5)
    shutil.rmtree(folder / "tokenizer")
    second = run(folder, processes, strategy=ForkedFSDP2(), ckpt_path=folder / "last.ckpt")
    assert first + second == pytest.approx(alone[1], abs=1e-5)
    left, right = (Tokenizer.from_pretrained(f / "tokenizer") for f in (alone[0], folder))
    assert close(left, right)


def test_checkpoint_of_one_process_goes_on_sharded(tmp_path, alone):
    folder = tmp_path / "one"
    first = run(folder, 1, stop=5)
    second = run(folder, 2, ckpt_path=folder / "last.ckpt")
    assert first + second == pytest.approx(alone[1], abs=1e-5)
    assert (folder / "last.ckpt").is_dir()


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param({"reshard_after_forward": False}, marks=pytest.mark.slow),
        {"async_save": True},
        pytest.param({"shard_size": 1}, marks=pytest.mark.slow),
    ],
    ids=["keep gathered", "save in the background", "two copies"],
)
def test_settings_do_not_change_the_losses(tmp_path, alone, strategy):
    assert run(tmp_path / "run", 2, strategy=ForkedFSDP2(**strategy)) == pytest.approx(alone[1], abs=1e-5)
    exported, read = (Tokenizer.from_pretrained(tmp_path / "run" / name) for name in ("tokenizer", "last.ckpt"))
    assert same(exported.encoder.state_dict(), read.encoder.state_dict())
    assert [path.name for path in (tmp_path / "run").glob("*.part")] == []


def test_activation_checkpointing_does_not_change_the_losses(tmp_path, alone):
    task = tiny_task(decoder=FLOW, bottleneck=partial(MLPBottleneck, channels=8), activation_checkpointing=True)
    assert run(tmp_path / "run", 2, task=task) == pytest.approx(alone[1], abs=1e-5)


def test_gathering_in_bfloat16_changes_a_little(tmp_path):
    settings = {"precision": "bf16-mixed"}
    exact = run(tmp_path / "exact", 2, **settings)
    rounded = run(tmp_path / "rounded", 2, strategy=ForkedFSDP2(gather_dtype="bfloat16"), **settings)
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=0.05)


PARTS = {
    "muon": {"optimizer": partial(Muon, lr=1e-3)},
    "conv": {"decoder": partial(ConvDecoder, width=32, min_width=8, groups=8)},
    "vit": {"decoder": partial(ViTDecoder, width=32, depth=2, num_heads=2)},
    "several codebooks": {"bottleneck": partial(MultiVQBottleneck, kmeans_init=False, dead_code_threshold=0)},
    "adversarial": {"pixel_losses": [Adversarial(width=8)]},
    "frozen encoder": {"encoder": partial(ENCODER, tune="frozen")},
    "last block": {"encoder": partial(ENCODER, tune=1)},
}


SLOW_PARTS = ("conv", "vit", "frozen encoder", "last block")  # whose ways others go, too


@pytest.mark.parametrize(
    "changes", [pytest.param(PARTS[n], id=n, marks=[pytest.mark.slow] * (n in SLOW_PARTS)) for n in PARTS]
)
def test_other_parts_train_as_in_one_process(tmp_path, changes):
    def train(processes):
        folder = tmp_path / str(processes)
        folder.mkdir()
        strategy = {"strategy": ForkedFSDP2(), "devices": processes} if processes > 1 else {}
        task = tiny_task(**{"decoder": REGRESSION, **copy.deepcopy(changes)})
        fit(task, tiny_scenes(batch_size=8 // processes), folder, steps=3, callbacks=[Record(folder)], **strategy)
        return mean_losses(folder, processes)

    assert train(2) == pytest.approx(train(1), abs=1e-5)


def test_states_from_a_cache_change_nothing(tmp_path):
    """A sharded encoder has to be run by both processes or by none: here one of them has all states, the other not."""
    frozen = {"decoder": REGRESSION, "encoder": partial(ENCODER, tune="frozen")}

    def train(folder, processes, **task):
        folder.mkdir()
        strategy = {"strategy": ForkedFSDP2(), "devices": processes} if processes > 1 else {}
        data = tiny_scenes(batch_size=8 // processes, train_length=16, fresh_epochs=False)
        fit(tiny_task(**frozen, **task), data, folder, steps=6, callbacks=[Record(folder)], **strategy)
        return mean_losses(folder, processes)

    states = tmp_path / "states"
    expected = train(tmp_path / "plain", 1)
    for attempt in ("empty", "some", "all"):
        cached = train(tmp_path / attempt, 2, state_cache=StateCache(str(states)))
        assert cached == pytest.approx(expected, abs=1e-5)
        files = sorted(states.rglob("*.safetensors"))
        assert len(files) == 16
        if attempt == "empty":
            files[0].unlink()


def test_a_learnable_codebook_that_writes_its_entries_is_refused(tmp_path):
    task = tiny_task(decoder=REGRESSION, bottleneck=partial(VQBottleneck, codebook_size=16, learnable=True))
    with pytest.raises(ProcessRaisedException, match="learnable"):
        fit(task, tiny_scenes(), tmp_path, strategy=ForkedFSDP2(), devices=2)


@pytest.mark.parametrize(
    "strategy", [partial(ModelParallelStrategy, data_parallel_size=2, tensor_parallel_size=1), FSDPStrategy]
)
def test_sharding_without_fsdp2_is_refused(tmp_path, strategy):
    strategy = forked(getattr(strategy, "func", strategy))(**getattr(strategy, "keywords", {}))
    with pytest.raises(ProcessRaisedException, match=r"set trainer\.strategy to fsdp2"):
        fit(tiny_task(), tiny_scenes(), tmp_path, strategy=strategy, devices=2)


@pytest.mark.parametrize(
    ("settings", "message"), [({"shard_size": 3}, "does not divide"), ({"gather_dtype": "bfloat16"}, "bf16-mixed")]
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(ProcessRaisedException, match=message):
        fit(tiny_task(), tiny_scenes(), tmp_path, strategy=ForkedFSDP2(**settings), devices=2)
