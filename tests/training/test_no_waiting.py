"""No training step reads a value from its tensors: on a GPU each such look waits for all that has been queued."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tiny import REGRESSION, tiny_scenes, tiny_task
from torch.utils._python_dispatch import TorchDispatchMode

from uniflow.bottleneck import FSQBottleneck, KLBottleneck
from uniflow.callbacks import EMA, Monitor
from uniflow.conditions import LabelCondition
from uniflow.decoders import ConvDecoder, ViTDecoder
from uniflow.distill import DepthPrior, LastLayer, UniformWeighting
from uniflow.generators import MAR, DiT
from uniflow.tasks import GenerationTask

# What gives Python a number, or a tensor whose size depends on values.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "bincount", "repeat_interleave")


class Looks(TorchDispatchMode):
    """Keeps the operators that would wait, while `on`."""

    def __init__(self):
        super().__init__()
        self.on, self.found = False, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.on and func._schema.name.removeprefix("aten::") in WAITING:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


class Step(Callback):
    """Watches what comes between the start and the end of each step."""

    def __init__(self, looks):
        self.looks = looks

    def on_train_batch_start(self, *args):
        self.looks.on = True

    def on_train_batch_end(self, *args):
        self.looks.on = False


def looks_of(task, root, **options):
    """What three steps look at, between whose logging Lightning has no part."""
    seed_everything(0, verbose=False)
    with Looks() as looks:
        Trainer(
            max_steps=3, default_root_dir=root, callbacks=[Step(looks), EMA(0.9), Monitor()], accelerator="cpu",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, **options,
        ).fit(task, tiny_scenes())  # fmt: skip
    return looks.found


def generation(network, **options):
    condition = partial(LabelCondition, num_classes=12, width=8)
    return GenerationTask("embedded", partial(network, width=16, depth=1, num_heads=2, **options), condition)


# Not here: the codebooks of vector_quantize_pytorch, which look four times a step; timm's Muon, which looks at its
# count of steps, a tensor of the CPU.
TASKS = {
    "as it is": tiny_task,
    "last layer": lambda: tiny_task(weighting=LastLayer()),
    "depth prior": lambda: tiny_task(weighting=DepthPrior()),
    "uniform": lambda: tiny_task(weighting=UniformWeighting()),
    "frozen": lambda: tiny_task(encoder_lr_multiplier=0.0),
    "scalars": lambda: tiny_task(bottleneck=partial(FSQBottleneck, levels=(3, 3))),
    "noise": lambda: tiny_task(bottleneck=partial(KLBottleneck, channels=8)),
    "regression": lambda: tiny_task(decoder=REGRESSION),
    "convolutions": lambda: tiny_task(decoder=partial(ConvDecoder, width=32, min_width=32)),
    "vit": lambda: tiny_task(decoder=partial(ViTDecoder, width=32, depth=1, num_heads=2)),
    "DiT": lambda: generation(DiT),
    "MAR": lambda: generation(MAR, head_width=16, head_depth=1),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_step_looks_at_no_value(tmp_path, name):
    assert not looks_of(TASKS[name](), tmp_path, gradient_clip_val=1.0)


def test_a_look_is_found(tmp_path):
    task = tiny_task()
    step = task.training_step
    task.training_step = lambda batch, batch_idx: step(batch, batch_idx) * float(torch.ones(2).sum() > 0)
    assert len(looks_of(task, tmp_path)) == 3
