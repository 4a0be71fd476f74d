"""Codebooks of two processes stay equal, and are those of one process with the doubled batch."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from tiny import REGRESSION, fit, output_of, tiny_scenes, tiny_task

from uniflow.bottleneck import MultiVQBottleneck, VQBottleneck
from uniflow.callbacks import CodebookUsage

VQ = partial(VQBottleneck, codebook_size=32, codebook_dim=4, decay=0.8)


class Record(Callback):
    """Writes each rank's losses, and in the end its weights and metrics, to files."""

    def __init__(self, folder):
        self.folder, self.losses, self.metrics = folder, [], {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_validation_end(self, trainer, pl_module):
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if "/codebook_" in k}

    def on_fit_end(self, trainer, pl_module):
        rank = trainer.global_rank
        (self.folder / f"log{rank}.json").write_text(json.dumps([self.losses, self.metrics]))
        torch.save(pl_module.state_dict(), self.folder / f"weights{rank}.pt")


def run(folder, bottleneck, *, processes, batch):
    folder.mkdir()
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if processes > 1 else "auto"
    task = tiny_task(decoder=REGRESSION, bottleneck=bottleneck)
    data = tiny_scenes(batch_size=batch, val_length=16)
    settings = {"limit_val_batches": 1.0, "val_check_interval": 4, "log_every_n_steps": 4, "num_sanity_val_steps": 0}
    callbacks = [CodebookUsage(), Record(folder)]
    fit(task, data, folder, callbacks=callbacks, strategy=strategy, devices=processes, **settings)
    logs = [json.loads((folder / f"log{rank}.json").read_text()) for rank in range(processes)]
    weights = [torch.load(folder / f"weights{rank}.pt", weights_only=True) for rank in range(processes)]
    return logs, weights


def test_two_processes_train_the_codebook_of_one(tmp_path):
    bottleneck = partial(VQ, kmeans_init=False, dead_code_threshold=0.0)  # both draw from the process's batch
    [(alone, metrics)], [weights] = run(tmp_path / "one", bottleneck, processes=1, batch=8)
    [(first, two), (second, _)], both = run(tmp_path / "two", bottleneck, processes=2, batch=4)
    assert first != second
    assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(alone, abs=1e-4)
    for name in (name for name in weights if "codebook" in name):
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], weights[name], atol=1e-2, rtol=1e-2)
    assert two.keys() == {f"{s}/codebook_{m}" for s in ("train", "val") for m in ("usage", "perplexity")}
    assert two == pytest.approx(metrics, rel=0.05)


@pytest.mark.parametrize(
    "bottleneck",
    [
        partial(VQ, dead_code_threshold=2.0),
        partial(VQ, dead_code_threshold=2.0, learnable=True),
        partial(MultiVQBottleneck, num_codebooks=2, codebook_size=32, codebook_dim=4, dead_code_threshold=2.0),
    ],
    ids=["vq", "vq_learnable", "multi_vq"],
)
def test_k_means_and_replaced_entries_are_the_same_everywhere(tmp_path, bottleneck):
    [(first, metrics), (second, others)], both = run(tmp_path / "two", bottleneck, processes=2, batch=4)
    assert first != second
    assert metrics == others
    names = [name for name in both[0] if "codebook" in name]
    assert any(name.endswith("embed") for name in names)
    for name in both[0]:
        assert torch.equal(both[0][name], both[1][name]), name
    entries = next(both[0][name] for name in names if name.endswith("embed"))[0]
    assert len(entries.unique(dim=0)) > 16


def test_a_codebook_made_before_the_processes_is_refused(monkeypatch):
    task = tiny_task(bottleneck=VQ)
    task.configure_model()
    monkeypatch.setattr("uniflow.bottleneck.codebook.world_size", lambda: 2)
    features = torch.randn(1, 32, 4, 4)
    with pytest.raises(ValueError, match=r"processes=1 is trained in 2.*after torch\.distributed is init") as caught:
        task.tokenizer.bottleneck(output_of(features))
    assert "\n" not in str(caught.value)
    assert task.tokenizer.bottleneck.eval()(output_of(features))[0].shape == (1, 4, 4, 4)
