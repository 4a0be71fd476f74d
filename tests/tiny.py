"""Small parts and runs that several tests share."""

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from uniflow.bottleneck import MLPBottleneck
from uniflow.core.specs import EncoderOutput
from uniflow.data import Scenes
from uniflow.decoders import PatchFlowDecoder, RegressionDecoder
from uniflow.encoders import SceneViT
from uniflow.tasks import TokenizerTask
from uniflow.training import FusedAdamW

ENCODER = partial(SceneViT, weights=None, depth=3, embed_dim=32, num_heads=2)
FLOW = partial(PatchFlowDecoder, width=32, num_heads=2, global_depth=1, flow_depth=2, prediction="data")
REGRESSION = partial(RegressionDecoder, width=32, num_heads=2, global_depth=1, head_depth=2)


def tiny_task(**kwargs):
    """A TokenizerTask of some 50 thousand parameters; `kwargs` replace its arguments."""
    defaults = {
        "encoder": ENCODER,
        "bottleneck": partial(MLPBottleneck, channels=8),
        "decoder": FLOW,
        "optimizer": partial(FusedAdamW, lr=3e-3),
    }
    return TokenizerTask(**(defaults | kwargs))


def tiny_scenes(**kwargs):
    """32 pixels, 64 pictures to train on, 8 to validate and to test."""
    defaults = {
        "size": 32,
        "train_length": 64,
        "val_length": 8,
        "test_length": 8,
        "batch_size": 8,
        "num_workers": 0,
    }
    return Scenes(**(defaults | kwargs))


def output_of(features, layers=3):
    """An encoder's output whose layers all have the feature map `features` (B, D, h, w)."""
    tokens = features.flatten(2).transpose(1, 2)
    return EncoderOutput((tokens,) * layers, (tokens[:, :0],) * layers, tuple(features.shape[-2:]))


class LossLog:
    """Collects the training loss of every step, exactly."""

    def __new__(cls):
        from lightning.pytorch import Callback

        class Log(Callback):
            def __init__(self):
                self.losses = []

            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                self.losses.append(outputs["loss"].item())

        return Log()


def fit(task, data, root: Path, *, steps: int = 4, seed: int = 0, callbacks=(), ckpt_path=None, **kwargs):
    """Fit quietly; returns the trainer and the losses of the steps that ran."""
    seed_everything(seed, verbose=False)
    log = LossLog()
    trainer = Trainer(
        max_steps=steps,
        default_root_dir=root,
        callbacks=[log, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"logger": False, "accelerator": "cpu", "enable_checkpointing": False, "limit_val_batches": 0} | kwargs),
    )
    trainer.fit(task, data, ckpt_path=ckpt_path)
    return trainer, log.losses


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same tensors."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
