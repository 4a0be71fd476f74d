"""Two processes that share one sharded model: the same training as one process with the doubled batch."""

import copy
import shutil
from functools import partial

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from parallel import ForkedFSDP2, Record, RepeatableFlow, forked, mean_losses, needs_sharding
from tiny import fit, same, tiny_scenes, tiny_task
from torch.multiprocessing import ProcessRaisedException
from torch.optim import SGD

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck, MultiVQBottleneck, VQBottleneck
from uniflow.callbacks import EMA, ImageGrid, LatentStatistics, Monitor, TokenizerExport
from uniflow.cli.checkpoint import LastCheckpoint
from uniflow.decoders import ConvDecoder, RegressionDecoder, ViTDecoder
from uniflow.encoders import SceneViT
from uniflow.features import StateCache
from uniflow.losses import Adversarial
from uniflow.training import FusedAdamW, Muon

pytestmark = needs_sharding
# Nearly all time goes into the bookkeeping of each tensor: the fewer blocks, the less.
ENCODER = partial(SceneViT, weights=None, depth=2, embed_dim=32, num_heads=2)
FLOW = partial(RepeatableFlow, width=32, num_heads=2, global_depth=1, flow_depth=1, prediction="data")
REGRESSION = partial(RegressionDecoder, width=32, num_heads=2, global_depth=1, head_depth=1)
ADAM = partial(FusedAdamW, lr=3e-3)
HALF = 3  # steps until a run's first checkpoint


class KeepHalf(Callback):
    """Copies the first checkpoint, which the last replaces, to half.ckpt: what a run leaves that is killed then."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == HALF and trainer.is_global_zero:
            last, half = (self.folder / f"{name}.ckpt" for name in ("last", "half"))
            shutil.copytree(last, half) if last.is_dir() else shutil.copy(last, half)


def task_of(**kwargs):
    return tiny_task(**({"encoder": ENCODER, "decoder": REGRESSION} | kwargs))


def run(folder, processes, *, strategy=None, ckpt_path=None, callbacks=(), **kwargs):
    """Train on Scenes, 8 pictures a step over all processes, and return the mean losses."""
    folder.mkdir()
    options = {"strategy": strategy or ForkedFSDP2(), "devices": processes} if processes > 1 or strategy else {}
    callbacks = [
        Record(folder), LastCheckpoint(every_n_train_steps=HALF), EMA(0.9), Monitor(), ImageGrid(2),
        LatentStatistics(), TokenizerExport(), *callbacks,
    ]  # fmt: skip
    options |= {"enable_checkpointing": True, "limit_val_batches": 1.0, "val_check_interval": 4}
    task = task_of(decoder=FLOW, bottleneck=partial(MLPBottleneck, channels=8), **kwargs)
    fit(task, tiny_scenes(batch_size=8 // processes, train_length=96), folder, steps=5, callbacks=callbacks,
        ckpt_path=ckpt_path, **options)  # fmt: skip
    return mean_losses(folder, processes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process without sharding, and its losses."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return folder, run(folder, 1, callbacks=[KeepHalf(folder)])


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The same run, sharded over two processes, and its losses."""
    folder = tmp_path_factory.mktemp("runs") / "sharded"
    return folder, run(folder, 2, callbacks=[KeepHalf(folder)])


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
def test_a_killed_run_goes_on_with_any_number_of_processes(tmp_path, alone, sharded, processes):
    folder, losses = sharded
    rest = run(tmp_path / "rest", processes, strategy=ForkedFSDP2(), ckpt_path=folder / "half.ckpt")
    assert losses[:HALF] + rest == pytest.approx(alone[1], abs=1e-5)
    left, right = (Tokenizer.from_pretrained(f / "tokenizer") for f in (alone[0], tmp_path / "rest"))
    assert close(left, right)


def test_checkpoint_of_one_process_goes_on_sharded(tmp_path, alone):
    folder, losses = alone
    rest = run(tmp_path / "rest", 2, ckpt_path=folder / "half.ckpt")
    assert losses[:HALF] + rest == pytest.approx(losses, abs=1e-5)
    assert (tmp_path / "rest" / "last.ckpt").is_dir()


@pytest.mark.parametrize(
    ("strategy", "task"),
    [
        pytest.param({"reshard_after_forward": False}, {}, marks=pytest.mark.slow, id="keep gathered"),
        # Two settings of different ends of a step in one run.
        pytest.param({"async_save": True}, {"activation_checkpointing": True}, id="save in the background, recompute"),
        pytest.param({"shard_size": 1}, {}, marks=pytest.mark.slow, id="two copies"),
    ],
)
def test_settings_do_not_change_the_losses(tmp_path, alone, strategy, task):
    losses = run(tmp_path / "run", 2, strategy=ForkedFSDP2(**strategy), **task)
    assert losses == pytest.approx(alone[1], abs=1e-5)
    exported, read = (Tokenizer.from_pretrained(tmp_path / "run" / name) for name in ("tokenizer", "last.ckpt"))
    assert same(exported.encoder.state_dict(), read.encoder.state_dict())
    assert [path.name for path in (tmp_path / "run").glob("*.part")] == []


def train(folder, processes, *, strategy=None, steps=3, scenes=None, precision="32-true", **task):
    """Train without checkpoints and validation, and return the mean losses."""
    folder.mkdir()
    options = {"strategy": strategy or ForkedFSDP2(), "devices": processes} if processes > 1 else {}
    data = tiny_scenes(batch_size=8 // processes, **(scenes or {}))
    # Unlike Adam it sees a wrong scale of gradients, and takes less bookkeeping; the encoder hardly moves.
    task = task_of(**({"optimizer": partial(SGD, lr=0.1, foreach=False)} | task))
    fit(task, data, folder, steps=steps, callbacks=[Record(folder)], precision=precision, **options)
    return mean_losses(folder, processes)


def test_gathering_in_bfloat16_changes_a_little(tmp_path):
    settings = {"precision": "bf16-mixed", "decoder": FLOW}
    exact = train(tmp_path / "exact", 2, **settings)
    rounded = train(tmp_path / "rounded", 2, strategy=ForkedFSDP2(gather_dtype="bfloat16"), **settings)
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=0.05)


PARTS = {
    # Each matrix takes its time, so those of the decoder have to do.
    "muon": {"optimizer": partial(Muon, lr=1e-3, ns_steps=2), "encoder": partial(ENCODER, tune="frozen")},
    "conv": {"decoder": partial(ConvDecoder, width=32, min_width=8, groups=8)},
    "vit": {"decoder": partial(ViTDecoder, width=32, depth=2, num_heads=2)},
    # Adam sees a wrong gradient of the encoder, which SGD hardly moves.
    "several codebooks": {
        "bottleneck": partial(MultiVQBottleneck, kmeans_init=False, dead_code_threshold=0),
        "optimizer": ADAM,
    },
    "adversarial": {"pixel_losses": [Adversarial(width=8)], "optimizer": ADAM},
    "frozen encoder": {"encoder": partial(ENCODER, tune="frozen"), "optimizer": ADAM, "steps": 4},
    "last block": {"encoder": partial(ENCODER, tune=1), "optimizer": ADAM, "steps": 4},
}


SLOW_PARTS = ("conv", "vit", "frozen encoder", "last block")  # whose ways others go, too


@pytest.mark.parametrize(
    "changes", [pytest.param(PARTS[n], id=n, marks=[pytest.mark.slow] * (n in SLOW_PARTS)) for n in PARTS]
)
def test_other_parts_train_as_in_one_process(tmp_path, changes):
    alone, sharded = (train(tmp_path / str(n), n, **copy.deepcopy(changes)) for n in (1, 2))
    assert sharded == pytest.approx(alone, abs=1e-5)


def test_states_from_a_cache_change_nothing(tmp_path):
    """A sharded encoder has to be run by both processes or by none: here one of them has all states, the other not."""
    states = tmp_path / "states"
    settings = {"encoder": partial(ENCODER, tune="frozen"), "scenes": {"train_length": 16, "fresh_epochs": False}}
    expected = train(tmp_path / "plain", 1, steps=4, **settings)
    for attempt, steps in (("empty", 4), ("some", 2)):  # an epoch is of two steps
        cached = train(tmp_path / attempt, 2, steps=steps, state_cache=StateCache(str(states)), **settings)
        assert cached == pytest.approx(expected[:steps], abs=1e-5)
        files = sorted(states.rglob("*.safetensors"))
        assert len(files) == 16
        files[0].unlink()


def test_a_learnable_codebook_that_writes_its_entries_is_refused(tmp_path):
    task = task_of(bottleneck=partial(VQBottleneck, codebook_size=16, learnable=True))
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
