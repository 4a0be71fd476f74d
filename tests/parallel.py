"""What tests with several processes share."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from uniflow.decoders import PatchFlowDecoder
from uniflow.sharding.strategy import CPU_SINCE, FSDP2

needs_sharding = pytest.mark.skipif(torch.__version__ < CPU_SINCE, reason=f"fsdp2 on CPUs needs torch {CPU_SINCE}")


class RepeatableFlow(PatchFlowDecoder):
    """Draws noise and times from the pixels themselves, so that they do not depend on who holds which sample."""

    def draw(self, data):
        return torch.sin(1000 * data), torch.sin(7 * data.sum(dim=-1)) * 0.4 + 0.5


class Record(Callback):
    """Writes each rank's losses to a file, and in the end its weights if they are not sharded."""

    def __init__(self, folder):
        self.folder, self.losses = folder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_fit_end(self, trainer, pl_module):
        (self.folder / f"losses{trainer.global_rank}.json").write_text(json.dumps(self.losses))
        if not isinstance(trainer.strategy, FSDP2):
            torch.save(pl_module.state_dict(), self.folder / f"weights{trainer.global_rank}.pt")


def mean_losses(folder, processes):
    """Of each step the mean over processes."""
    every = [json.loads((folder / f"losses{rank}.json").read_text()) for rank in range(processes)]
    return [sum(step) / processes for step in zip(*every, strict=True)]


class _Launcher(_MultiProcessingLauncher):
    """Brings nothing back into the test's process: a sharded model cannot be."""

    def _collect_rank_zero_results(self, trainer, results):
        return SimpleNamespace(trainer_results=None)

    def _recover_results_in_main_process(self, worker_output, trainer):
        pass


def forked(strategy):
    """A strategy whose processes are forked from the test, in place of being started anew."""

    class Forked(strategy):
        def _configure_launcher(self):
            self._launcher = _Launcher(self, start_method="fork")

    return Forked


ForkedFSDP2 = forked(FSDP2)
