"""What has to hold on a CUDA device."""

import pytest
import torch
from tiny import ENCODER, FLOW, fit, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.callbacks import EMA, Monitor, Stability

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_the_gpu_computes_what_the_cpu_does():
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    tokenizer = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).eval()
    images, noise = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8), torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        expected = tokenizer.reconstruct(images, noise=noise, steps=2)
        found = tokenizer.cuda().reconstruct(images.cuda(), noise=noise.cuda(), steps=2).cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_the_gpu(tmp_path, precision):
    task = tiny_task()
    callbacks = [EMA(0.9), Monitor(), Stability()]
    _, losses = fit(
        task,
        tiny_scenes(),
        tmp_path,
        steps=20,
        callbacks=callbacks,
        accelerator="gpu",
        devices=1,
        precision=precision,
        gradient_clip_val=1.0,
    )
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
    assert next(task.teacher.parameters()).is_cuda
