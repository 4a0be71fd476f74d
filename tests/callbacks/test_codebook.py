"""Codebook usage: its numbers against closed forms, and that each latent is counted once."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import REGRESSION, fit, tiny_scenes, tiny_task

from uniflow.bottleneck import FSQBottleneck, MultiVQBottleneck
from uniflow.callbacks import CodebookUsage, ImageGrid, TeacherGap
from uniflow.callbacks.codebook import usage_and_perplexity

FSQ = partial(FSQBottleneck, levels=(3, 3, 3), num_codebooks=2)


def test_closed_forms():
    assert usage_and_perplexity(torch.tensor([[5, 5, 5, 5]])) == pytest.approx({"usage": 1, "perplexity": 4})
    assert usage_and_perplexity(torch.tensor([[9, 0, 0, 0]])) == pytest.approx({"usage": 0.25, "perplexity": 1})
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    expected = {"usage": 0.5, "perplexity": math.exp(entropy)}
    assert usage_and_perplexity(torch.tensor([[3, 0, 1, 0]])) == pytest.approx(expected)
    both = usage_and_perplexity(torch.tensor([[5, 5, 5, 5], [9, 0, 0, 0]]))
    assert both == pytest.approx({"usage": 0.625, "perplexity": 2.5})
    # Single precision would lose the rare entries of a long evaluation.
    many = usage_and_perplexity(torch.tensor([[2**40, 1]]))
    assert many["perplexity"] > 1


def test_an_evaluation_counts_every_latent_once(tmp_path):
    task = tiny_task(bottleneck=FSQ, decoder=REGRESSION)
    fit(task, tiny_scenes(), tmp_path)
    calls = []

    def results(batch_size, *callbacks):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
        )
        handle = task.tokenizer.encoder.register_forward_hook(lambda *_: calls.append(1))
        data = tiny_scenes(val_length=10, test_length=22, batch_size=batch_size)
        [metrics] = trainer.test(task, data, verbose=False)
        handle.remove()
        assert not task.tokenizer.bottleneck._forward_pre_hooks
        images = torch.cat([batch["image"] for batch in data.test_dataloader()])
        return metrics, task.tokenizer.eval().indices(images).flatten(0, 2), None

    plain, indices, _ = results(8)
    assert not any("codebook" in name for name in plain)
    counts = torch.stack([torch.bincount(own, minlength=27) for own in indices.T])
    expected = usage_and_perplexity(counts)
    # Pictures and probes pass the bottleneck, too.
    for batch_size, others in [(8, ()), (5, (ImageGrid(3), TeacherGap()))]:
        metrics, _, _ = results(batch_size, *others, CodebookUsage())
        assert metrics["test/codebook_usage"] == pytest.approx(expected["usage"], abs=1e-7)
        assert metrics["test/codebook_perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
    assert counts.sum() == 2 * 22 * 16
    assert 0 < expected["usage"] < 1


def test_it_needs_no_second_pass_of_the_encoder(tmp_path):
    def passes(*callbacks):
        task, count = tiny_task(bottleneck=FSQ, decoder=REGRESSION), []
        task.configure_model()
        task.tokenizer.encoder.register_forward_hook(lambda *_: count.append(1))
        settings = {"limit_val_batches": 1, "val_check_interval": 2, "log_every_n_steps": 1}
        fit(task, tiny_scenes(), tmp_path, callbacks=callbacks, **settings)
        return len(count)

    assert passes(CodebookUsage()) == passes()


def test_training_and_validation_are_logged(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    settings = {"limit_val_batches": 1, "val_check_interval": 4, "log_every_n_steps": 2, "logger": logger}
    seen = []

    class Watched(MultiVQBottleneck):
        """Remembers which entries the latents of each training step are."""

        def quantize(self, tokens):
            seen.append(self.nearest(tokens))
            return super().quantize(tokens)

    bottleneck = partial(Watched, num_codebooks=2, codebook_size=16, codebook_dim=4)
    fit(tiny_task(bottleneck=bottleneck), tiny_scenes(), tmp_path, callbacks=[CodebookUsage()], **settings)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/codebook_usage")]
    assert steps == [1, 3]
    for event, indices in zip(events.Scalars("train/codebook_perplexity"), seen[1::2], strict=True):
        counts = torch.stack([torch.bincount(own, minlength=16) for own in indices.flatten(0, 2).T])
        assert event.value == pytest.approx(usage_and_perplexity(counts)["perplexity"], rel=1e-5)
    [usage] = events.Scalars("val/codebook_usage")
    assert 1 / 16 <= usage.value <= 1
    [perplexity] = events.Scalars("val/codebook_perplexity")
    assert 1 < perplexity.value <= 16


def test_a_continuous_tokenizer_logs_nothing(tmp_path):
    settings = {"limit_val_batches": 1, "val_check_interval": 2, "log_every_n_steps": 1}
    trainer, _ = fit(tiny_task(), tiny_scenes(), tmp_path, steps=2, callbacks=[CodebookUsage()], **settings)
    assert "val/psnr" in trainer.callback_metrics
    assert not any("codebook" in name for name in trainer.callback_metrics)
