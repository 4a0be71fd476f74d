"""Before the first step of training: layers are measured, and a regression's solution is written, once."""

import json
from functools import cache, partial

import pytest
import skimage.data
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from parallel import ForkedFSDP2, needs_sharding
from PIL import Image
from tiny import ENCODER, FLOW, REGRESSION, fit, same, tiny_scenes, tiny_task

from uniflow.bottleneck import FSQBottleneck, KLBottleneck, MLPBottleneck
from uniflow.callbacks import EMA
from uniflow.data import ImageFolder
from uniflow.decoders import ConvDecoder, PatchFlowDecoder, ViTDecoder
from uniflow.encoders import EmbeddedViT
from uniflow.start import Regression

NECK = partial(MLPBottleneck, channels=8, layers="all", shortcut=True)
DECODERS = {
    "flow": partial(FLOW, shortcut=True),
    "velocity": partial(PatchFlowDecoder, width=192, num_heads=2, global_depth=1, flow_depth=1, shortcut=True),
    "regression": partial(REGRESSION, shortcut=True),
    "vit": partial(ViTDecoder, width=32, depth=1, num_heads=2, shortcut=True),
    "conv": partial(ConvDecoder, width=32, min_width=8, depth=1, groups=4, shortcut=True),
}


def start(tmp_path, *, steps=1, callbacks=(), data=None, logger=False, strategy=None, devices=1, resume=None, **kwargs):
    """The task after `steps` of training that change nothing, unless the optimizer is given."""
    defaults = {
        "bottleneck": NECK,
        "decoder": DECODERS["regression"],
        "start": Regression(images=64),
        "optimizer": partial(torch.optim.SGD, lr=0.0),
    }
    task = tiny_task(**(defaults | kwargs))
    options = {"strategy": strategy, "devices": devices} if strategy else {}
    options["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    fit(
        task,
        data or tiny_scenes(),
        tmp_path,
        steps=steps,
        callbacks=callbacks,
        logger=logger,
        ckpt_path=resume,
        **options,
    )
    return task


@cache
def validation_images(count):
    data = tiny_scenes(val_length=count)
    data.setup("fit")
    return torch.cat([batch["image"] for batch in data.val_dataloader()])


def psnr(task, count=16):
    images = validation_images(count)
    painted = task.tokenizer.eval().reconstruct(images, generator=torch.Generator().manual_seed(0)).detach()
    return -10 * (painted - images / 255).square().mean(dim=(1, 2, 3)).log10().mean().item()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """How well a regression starts."""
    return psnr(start(tmp_path_factory.mktemp("reference")))


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_starts_from_the_same_pictures(tmp_path, reference, decoder):
    found = psnr(start(tmp_path, decoder=DECODERS[decoder]))
    assert found == pytest.approx(reference, abs=1e-3)
    assert found > psnr(start(tmp_path, start="random", decoder=DECODERS[decoder])) + 1.5


def test_on_real_photographs_it_is_far_above_patch_means_before_any_training(tmp_path):
    """Photographs of scikit-image; the embedded encoder has not seen those that are painted here."""
    splits = {"train": ("rocket",), "val": ("astronaut", "chelsea"), "test": ("coffee",)}
    for split, names in splits.items():
        (tmp_path / "photos" / split).mkdir(parents=True)
        for name in names:
            photo = Image.fromarray(getattr(skimage.data, name)()).resize((320, 256))
            for number in range(8 if split == "train" else 1):  # a batch of crops
                photo.save(tmp_path / "photos" / split / f"{name}{number}.png")
    data = ImageFolder(str(tmp_path / "photos"), size=64, batch_size=8, num_workers=0)
    neck = partial(MLPBottleneck, channels=64, layers=["embeddings", -1], shortcut=True)
    encoder, regression = partial(EmbeddedViT, tune="frozen"), Regression(images=64, feature_share=0.05)
    task = start(tmp_path, data=data, encoder=encoder, start=regression, bottleneck=neck)
    images = torch.cat([batch["image"] for batch in data.val_dataloader()])
    painted = task.tokenizer.eval().reconstruct(images).detach()
    coarse = torch.nn.functional.avg_pool2d(images / 255, 8).repeat_interleave(8, -1).repeat_interleave(8, -2)
    found, flat = (-10 * (x - images / 255).square().mean(dim=(1, 2, 3)).log10().mean() for x in (painted, coarse))
    assert found > flat + 4


@pytest.mark.parametrize("make", [partial(KLBottleneck, channels=8), partial(FSQBottleneck, levels=[8] * 8)])
@pytest.mark.parametrize("merge", [1, 2])
def test_other_bottlenecks_start_well_too(tmp_path, make, merge):
    neck = partial(make, layers="all", shortcut=True, merge=merge)
    found = psnr(start(tmp_path, bottleneck=neck))
    assert found > psnr(start(tmp_path, bottleneck=neck, start="random")) + 1


def test_every_setting_changes_the_start(tmp_path):
    def weights(**kwargs):
        return start(tmp_path, start=Regression(**({"images": 32, "tokens": 8} | kwargs))).tokenizer.state_dict()

    base = weights()
    assert same(base, weights())
    for change in ({"images": 64}, {"tokens": None}, {"feature_share": 0.6}, {"ridge": 0.1}):
        assert not same(base, weights(**change)), change
    named = tiny_task(start="regression").start
    assert vars(named) == vars(Regression())


@pytest.mark.parametrize(
    "bad", [{"images": 0}, {"tokens": 0}, {"feature_share": 1.0}, {"feature_share": -0.1}, {"ridge": -1.0},
            {"ridge": float("inf")}, {"ridge": float("nan")}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=rf"Regression\.{next(iter(bad))} must .* got"):
        Regression(**bad)


@pytest.mark.parametrize("missing", ["bottleneck", "decoder"])
def test_parts_without_a_linear_path_are_refused_before_anything_is_computed(tmp_path, missing):
    plain = {"bottleneck": partial(MLPBottleneck, channels=8), "decoder": FLOW}[missing]
    name = {"bottleneck": "MLPBottleneck", "decoder": "PatchFlowDecoder"}[missing]
    with pytest.raises(ValueError, match=f"{name} has no linear path to start from: set its shortcut to true"):
        start(tmp_path, **{missing: plain})
    with pytest.raises(ValueError, match="start must be random, regression or"):
        start(tmp_path, start="zero")


def test_the_start_is_exact_and_training_goes_on_from_it_in_the_same_order(tmp_path):
    """Reading images for the start changes neither the order of training nor its randomness."""
    seen = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch["image"].float().mean().item())

    for method in ("random", Regression(images=64)):
        seen.append(method)
        start(tmp_path, steps=5, callbacks=[Seen()], start=method, data=tiny_scenes(train_length=16))
    half = len(seen) // 2
    assert half == 6
    assert seen[1:half] == seen[half + 1 :]


def test_it_is_logged_and_printed(tmp_path, caplog):
    from lightning.pytorch.loggers import CSVLogger

    task = start(tmp_path, logger=CSVLogger(tmp_path))
    (file,) = tmp_path.rglob("metrics.csv")
    header, first = file.read_text().splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["start/psnr"]) == pytest.approx(psnr(task, 8), abs=0.05)
    assert 0 < float(row["start/feature_r2"]) <= 1


def test_it_says_how_many_images_a_short_loader_gave(tmp_path, caplog):
    data = tiny_scenes()
    data.setup("fit")
    loader = torch.utils.data.DataLoader(data.datasets["train"], batch_size=8)  # 64 images, and no more
    with caplog.at_level("INFO"):
        start(tmp_path, data=loader, start=Regression(images=1000))
    assert "start: regression on 64 images" in caplog.text
    assert "reconstructs training images" in caplog.text


def test_averages_begin_with_the_start(tmp_path):
    average = EMA(0.9)
    task = start(tmp_path, callbacks=[average])
    for name, value in average.average.items():
        torch.testing.assert_close(value, task.state_dict()[name])


def test_a_resumed_run_does_not_start_again(tmp_path):
    kwargs = {"optimizer": partial(torch.optim.SGD, lr=0.1), "start": Regression(images=32)}
    keep = ModelCheckpoint(tmp_path / "keep", save_last=True, every_n_train_steps=2, save_top_k=-1)
    whole = start(tmp_path / "a", steps=4, callbacks=[keep], **kwargs)
    (first,) = (tmp_path / "keep").glob("*step=2.ckpt")
    again = start(tmp_path / "b", steps=4, resume=str(first), **kwargs)
    assert same(whole.tokenizer.state_dict(), again.tokenizer.state_dict())


class Weights(Callback):
    """Writes the whole bottleneck and decoder from all processes when the first step is over."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        from uniflow.sharding.shard import full_state_dict

        state = full_state_dict(pl_module.tokenizer)
        if trainer.is_global_zero:
            torch.save({k: v for k, v in state.items() if not k.startswith("encoder.")}, self.folder / "weights.pt")


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=needs_sharding)])
def test_the_number_of_processes_does_not_matter(tmp_path, strategy):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes in ((one, 1), (two, 2)):
        folder.mkdir()
        chosen = {
            "ddp": DDPStrategy(start_method="fork", process_group_backend="gloo"),
            "fsdp2": ForkedFSDP2() if strategy == "fsdp2" else None,
        }[strategy]
        start(
            folder, callbacks=[Weights(folder)], data=tiny_scenes(batch_size=16 // processes),
            strategy=chosen if processes > 1 else None, devices=processes, encoder=partial(ENCODER, tune="frozen"),
        )  # fmt: skip
    alone, together = (torch.load(folder / "weights.pt", weights_only=True) for folder in (one, two))
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        if "shortcut" in name or "fusion" in name:
            torch.testing.assert_close(value.abs(), together[name].abs(), atol=1e-4, rtol=1e-4)
    assert json.dumps(sorted(alone)) == json.dumps(sorted(together))


def features_error(task):
    """Mean squared error of the last hidden state, read from the latents by the task's map."""
    data = tiny_scenes()
    data.setup("fit")
    images = next(iter(data.val_dataloader()))["image"]
    with torch.no_grad():
        return task.latent_feature_loss(task.tokenizer.eval().encode(images), task.teacher(images)).item()


@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_the_loss_on_features_keeps_them_in_the_latents(tmp_path, tune):
    kwargs = {"latent_feature_weight": 0.01, "encoder": partial(ENCODER, tune=tune)}
    started = start(tmp_path, **kwargs)
    # The start sets the map that reads them: better than the mean, whose error is 1.
    assert features_error(started) < 0.6
    train = {"steps": 10, "optimizer": partial(torch.optim.AdamW, lr=3e-3), "shortcut_lr_multiplier": 1.0}
    kept, lost = (
        features_error(start(tmp_path, **(kwargs | train | {"latent_feature_weight": w}))) for w in (1.0, 1e-6)
    )
    assert kept < lost


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_other_weights_of_that_loss_are_refused(value):
    with pytest.raises(ValueError, match="latent_feature_weight must be a finite number >= 0"):
        tiny_task(latent_feature_weight=value)


def test_shortcuts_have_a_learning_rate_of_their_own():
    parts = {"bottleneck": NECK, "decoder": DECODERS["flow"], "latent_feature_weight": 0.1}
    random = tiny_task(shortcut_lr_multiplier=0.2, **parts)
    random.configure_model()
    assert {random.lr_multiplier(name) for name, _ in random.named_parameters()} == {1.0}
    task = tiny_task(start="regression", shortcut_lr_multiplier=0.2, **parts)
    task.configure_model()
    factors = {name: task.lr_multiplier(name) for name, _ in task.named_parameters()}
    assert {name for name, factor in factors.items() if factor == 0.2} == {
        "tokenizer.bottleneck.shortcut.weight", "tokenizer.bottleneck.shortcut.bias",
        "tokenizer.decoder.shortcut.weight", "tokenizer.decoder.shortcut.bias",
        "feature_head.weight", "feature_head.bias",
    }  # fmt: skip
