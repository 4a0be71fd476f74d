"""When gradients are held: from the backward pass to the optimizer's step, and not beside the next activations."""

import pytest
from lightning.pytorch import Callback
from tiny import fit, tiny_scenes, tiny_task


class Gradients(Callback):
    """Whether there are gradients at each hook."""

    def __init__(self):
        self.seen = []

    def _look(self, hook, module):
        self.seen.append((hook, any(p.grad is not None for p in module.parameters())))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._look("start", pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._look("step", pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._look("end", pl_module)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_freed_after_the_step(tmp_path, accumulate):
    watch = Gradients()
    fit(tiny_task(), tiny_scenes(), tmp_path, callbacks=[watch], steps=2, accumulate_grad_batches=accumulate)
    if accumulate == 1:
        once = [("start", False), ("step", True), ("end", False)]
    else:
        once = [("start", False), ("end", True), ("start", True), ("step", True), ("end", False)]
    assert watch.seen == 2 * once
