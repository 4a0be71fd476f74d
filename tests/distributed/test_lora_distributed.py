"""Low-rank adapters in two processes on the CPU, which hold copies of the model or share one."""

from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from parallel import ForkedFSDP2, Record, RepeatableFlow, mean_losses, needs_sharding
from tiny import ENCODER, fit, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.callbacks import EMA, TokenizerExport
from uniflow.cli.checkpoint import LastCheckpoint

FLOW = partial(RepeatableFlow, width=32, num_heads=2, global_depth=1, flow_depth=1, prediction="data")
LORA = partial(ENCODER, depth=2, tune="lora", lora_rank=4)


def run(folder, processes, **kwargs):
    """Train on 8 scenes a step over all processes, and return the mean losses and the exported tokenizer."""
    folder.mkdir()
    task = tiny_task(encoder=LORA, decoder=FLOW, bottleneck=partial(MLPBottleneck, channels=8))
    callbacks = [Record(folder), LastCheckpoint(every_n_train_steps=4), EMA(0.9), TokenizerExport()]
    fit(task, tiny_scenes(batch_size=8 // processes), folder, callbacks=callbacks, enable_checkpointing=True, **kwargs)
    return mean_losses(folder, processes), Tokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "alone", 1)


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp2", marks=needs_sharding)])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, alone, kind):
    strategies = {
        # Without a search for unused parameters: there are none, or the second step fails.
        "ddp": lambda: DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=False),
        "fsdp2": ForkedFSDP2,
    }
    losses, tokenizer = run(tmp_path / "run", 2, strategy=strategies[kind](), devices=2)
    assert losses == pytest.approx(alone[0], abs=1e-5)
    own = tokenizer.state_dict()
    assert own.keys() == alone[1].state_dict().keys()
    assert all((value - own[name]).abs().mean() < 1e-4 for name, value in alone[1].state_dict().items())
    read = Tokenizer.from_pretrained(tmp_path / "run" / "last.ckpt").state_dict()
    assert all(torch.equal(value, own[name]) for name, value in read.items())
