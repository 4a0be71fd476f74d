"""Two processes on the CPU: the same training as one process with the doubled batch."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from parallel import Record, RepeatableFlow
from tiny import REGRESSION, fit, tiny_scenes, tiny_task

from uniflow.bottleneck import MLPBottleneck
from uniflow.callbacks import EMA, TeacherGap

FLOW = partial(RepeatableFlow, width=32, num_heads=2, global_depth=1, flow_depth=2, prediction="data")


def run(folder, *, processes, decoder, batch, **kwargs):
    folder.mkdir()
    if processes > 1:
        kwargs |= {"strategy": DDPStrategy(start_method="fork", process_group_backend="gloo"), "devices": processes}
    task = tiny_task(decoder=decoder, bottleneck=partial(MLPBottleneck, channels=8))
    fit(task, tiny_scenes(batch_size=batch), folder, steps=6, callbacks=[Record(folder), EMA(0.9)], **kwargs)
    return [json.loads((folder / f"losses{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("decoder", [FLOW, REGRESSION], ids=["flow", "regression"])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, decoder):
    [alone] = run(tmp_path / "one", processes=1, decoder=decoder, batch=8)
    first, second = run(tmp_path / "two", processes=2, decoder=decoder, batch=4)
    assert first != second  # each has samples of its own
    together = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    weights = [
        torch.load(tmp_path / folder / name, weights_only=True)
        for folder, name in (("one", "weights0.pt"), ("two", "weights0.pt"), ("two", "weights1.pt"))
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], weights[2][name])
        # Adam divides by the root of tiny squares, so single weights may differ more than the loss does.
        assert (tensor - weights[1][name]).abs().mean() < 1e-4


class Results(Callback):
    def __init__(self, path):
        self.path = path

    def on_test_end(self, trainer, pl_module):
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(values))


def evaluate(path, processes):
    from lightning.pytorch import Trainer, seed_everything

    seed_everything(0, verbose=False)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if processes > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        logger=False,
        enable_progress_bar=False,
        callbacks=[Results(path), TeacherGap()],
        default_root_dir=path.parent,
    )
    data = tiny_scenes(val_length=40, test_length=31, batch_size=8)
    trainer.test(tiny_task(decoder=REGRESSION), data, verbose=False)
    return [json.loads(path.with_suffix(f".{rank}").read_text()) for rank in range(processes)]


def test_two_processes_evaluate_as_one(tmp_path):
    [alone] = evaluate(tmp_path / "one", 1)
    first, second = evaluate(tmp_path / "two", 2)
    assert {k: v for k, v in first.items() if "probe" not in k} == pytest.approx(
        {k: v for k, v in alone.items() if "probe" not in k}, abs=1e-5
    )
    assert first["test/probe_student"] == pytest.approx(alone["test/probe_student"], abs=1e-6)
    assert second["test/psnr"] == pytest.approx(alone["test/psnr"], abs=1e-5)
