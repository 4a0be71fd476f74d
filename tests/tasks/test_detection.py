"""Detection: trained, monitored and shown with any source; two processes give the numbers of one."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from parallel import ForkedFSDP2, needs_sharding
from tiny import ENCODER, fit, tiny_scenes

from uniflow.features import BlankSource, EncoderSource, LatentSource
from uniflow.heads import FCOSHead, LabelHead, MaskRCNNHead
from uniflow.tasks import DetectionTask
from uniflow.training import FusedAdamW

HEAD = partial(FCOSHead, num_classes=12, channels=32, convs=1, scales=[1], score_threshold=0.01)
SOURCE = partial(EncoderSource, ENCODER)


def scenes(**settings):
    return tiny_scenes(**({"fields": ["boxes"], "train_length": 16, "batch_size": 4} | settings))


def task(source=SOURCE, head=HEAD, **settings):
    torch.manual_seed(0)
    return DetectionTask(source=source, heads=[head], optimizer=partial(FusedAdamW, lr=1e-3), **settings)


class Logged(Callback):
    """The names and values that were logged, in a file for each process."""

    def __init__(self, path):
        self.path = path

    def on_test_end(self, trainer, pl_module):
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "source",
    [SOURCE, partial(LatentSource, "embedded"), partial(BlankSource, 4, 16)],
    ids=["encoder", "latent", "blank"],
)
def test_it_trains_on_any_source_and_logs_each_loss(tmp_path, source):
    made = task(source)
    trainer, losses = fit(made, scenes(), tmp_path, steps=2, limit_val_batches=1, val_check_interval=2)
    values = trainer.callback_metrics
    parts = [f"train/detection_{name}" for name in ("classification", "bbox_regression", "bbox_ctrness")]
    assert sum(float(values[name]) for name in parts) == pytest.approx(losses[-1], rel=1e-5)
    assert made.monitor == ("val/map", "max")
    assert {"val/map", "val/map_50", "val/map_75", "val/detection"} <= values.keys()
    assert 0 <= values["val/map"] <= 1


def test_masks_are_judged_too(tmp_path):
    head = partial(MaskRCNNHead, num_classes=12, channels=16, scales=[1], hidden=16, proposals=20, mask_channels=8)
    trainer, _ = fit(
        task(head=head),
        scenes(fields=["boxes", "instances"]),
        tmp_path,
        steps=1,
        limit_val_batches=1,
        val_check_interval=1,
    )
    assert {"train/detection_mask", "val/map", "val/mask_map"} <= trainer.callback_metrics.keys()


def test_pictures_show_input_truth_and_what_scores_enough():
    data = scenes()
    batch = next(iter(data.test_dataloader()))

    def rows(shown_score):
        made = task(shown_score=shown_score)
        made.configure_model()
        with torch.no_grad():
            return made.eval().image_rows(batch, 3)

    every, none = rows(0.0), rows(1.0)
    assert list(every) == ["input", "true boxes", "found boxes"]
    for images in every.values():
        assert images.shape == (3, 3, 192, 192)
        assert 0 <= images.min() <= images.max() <= 1
    assert not torch.equal(every["true boxes"], every["input"])
    assert not torch.equal(every["found boxes"], every["input"])
    # A pixel is at most half a step of uint8 away where nothing is drawn.
    torch.testing.assert_close(none["found boxes"], none["input"], atol=1 / 255, rtol=0)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"DetectionTask.heads has no DetectionHead"):
        task(head=partial(LabelHead, num_classes=12)).configure_model()
    with pytest.raises(ValueError, match=r"needs boxes and box_labels in a batch; with Scenes set data.fields"):
        fit(task(), scenes(fields=[]), tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"the data has 12 classes, FCOSHead.num_classes is 3"):
        fit(task(head=partial(HEAD, num_classes=3)), scenes(), tmp_path, steps=1)


def test_the_example_batch_can_be_trained_on():
    made = task(head=partial(MaskRCNNHead, num_classes=2, channels=16, scales=[1], hidden=16, proposals=20))
    made.configure_model()
    batch = made.example_batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert all(torch.isfinite(loss) for loss in made.losses(made.features(batch["image"]), batch).values())


def judge(path, processes, sharded=False):
    seed_everything(0, verbose=False)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if processes > 1 else "auto"
    strategy = ForkedFSDP2() if sharded else strategy
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        logger=False,
        enable_progress_bar=False,
        callbacks=[Logged(path)],
        default_root_dir=path.parent,
    )
    # Seven images: the processes have unequal shares.
    trainer.test(task(probe_images=0), scenes(test_length=7, val_length=4), verbose=False)
    return [json.loads(path.with_suffix(f".{rank}").read_text()) for rank in range(processes)]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    [alone] = judge(tmp_path / "one", 1)
    first, second = judge(tmp_path / "two", 2)
    assert alone["test/map"] >= 0
    assert {"test/map", "test/map_50", "test/map_75", "test/map_small", "test/detection"} <= alone.keys()
    precision = [name for name in alone if "map" in name]
    for values in (first, second):
        assert {n: values[n] for n in precision} == pytest.approx({n: alone[n] for n in precision}, abs=1e-6)


@needs_sharding
def test_a_sharded_model_gives_the_numbers_of_one_process(tmp_path):
    [alone] = judge(tmp_path / "one", 1)
    for values in judge(tmp_path / "two", 2, sharded=True):
        assert values == pytest.approx(alone, rel=1e-4)
