"""Merged frames in training, evaluation, statistics and `uniflow reconstruct`: from an image tokenizer to clips."""

import json
import math
from functools import partial

import pytest
import torch
from clips import stairs, write_clip, write_folder
from tiny import ENCODER, FLOW, fit, tiny_task

from uniflow import Tokenizer
from uniflow.bottleneck import FSQBottleneck, MLPBottleneck
from uniflow.callbacks import CodebookUsage, LatentStatistics, TeacherGap
from uniflow.cli import main
from uniflow.data import ClipFolder, SceneClips
from uniflow.encoders import SceneViT
from uniflow.evaluation.clips import ClipEvaluation
from uniflow.tools import reconstruct_clip as of_clips

FROZEN = partial(SceneViT, weights=None, depth=3, embed_dim=32, num_heads=2, tune="frozen")
MERGING = partial(MLPBottleneck, channels=8, temporal_merge=2)
ZERO = partial(FLOW, start="zero")  # no noise, so that decodings can be compared


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tokenizer of images."""
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, ZERO(bottleneck.spec))
    for parameter in model.decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("images")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merging(images, tmp_path_factory):
    """The folder of a tokenizer that merges, and has learned something."""
    model = Tokenizer.from_pretrained(images)
    torch.manual_seed(1)
    bottleneck = MERGING(model.encoder.spec)
    bottleneck.load_state_dict(model.bottleneck.state_dict(), strict=False)
    for parameter in bottleneck.temporal.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("merging")
    Tokenizer(model.encoder, bottleneck, model.decoder).save_pretrained(folder)
    return folder


def clips(length=4, **options):
    sizes = {"train_length": 16, "val_length": 4, "test_length": 4, "batch_size": 4}
    return SceneClips(32, length, **(sizes | options), num_workers=0)


def task_of(images, **options):
    defaults = {"encoder": FROZEN, "bottleneck": MERGING, "decoder": ZERO, "init_from": str(images)}
    return tiny_task(**(defaults | options))


def files(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "films" / split).mkdir(parents=True)
        for number in range(2):
            write_clip(tmp_path / "films" / split / f"{number}.mp4", stairs(5 + number))
    return ClipFolder(str(tmp_path / "films"), 32, length=5, batch_size=2, num_workers=0)


@pytest.mark.parametrize("kind", ["scenes", "files"])
def test_it_learns_from_clips_while_images_stay_bit_for_bit(images, tmp_path, kind):
    data = clips() if kind == "scenes" else files(tmp_path)
    task = task_of(images, decoder=partial(ZERO, temporal_window=2), train_only="temporal")
    _, losses = fit(task, data, tmp_path, steps=3)
    assert all(map(math.isfinite, losses))
    before, after = Tokenizer.from_pretrained(images).eval(), task.tokenizer.eval()
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    assert after.bottleneck.temporal.into.projection.weight.abs().max() > 0
    assert after.bottleneck.temporal.out_of.projection.weight.abs().max() > 0
    batch = next(iter(clips().test_dataloader()))["image"]
    assert torch.equal(after.reconstruct(batch), before.reconstruct(batch))


def test_merging_counts_and_is_off_by_default(images, tmp_path):
    off = task_of(images, bottleneck=partial(MLPBottleneck, channels=8))
    _, without = fit(off, clips(), tmp_path, steps=1)
    _, merged = fit(task_of(images), clips(), tmp_path, steps=1)
    assert merged[0] != without[0]
    assert not any("temporal" in name for name in off.state_dict())


@pytest.mark.parametrize("options", [{"noise_tau": 0.5}, {"latent_feature_weight": 1.0}])
def test_noise_and_features_of_temporal_latents(images, tmp_path, options):
    plain, changed = (
        fit(task_of(images, init_from=None, **more), clips(), tmp_path, steps=2)[1] for more in ({}, options)
    )
    assert plain[0] != changed[0]


def test_evaluation_has_the_numbers_of_clips(images, tmp_path):
    task, data = task_of(images), clips(5)
    gap = TeacherGap(max_images=8)
    trainer, _ = fit(
        task, data, tmp_path, steps=1, callbacks=[LatentStatistics(max_images=7), gap], limit_val_batches=1
    )
    assert task.tokenizer.latent_statistics["count"] == 3 * 16  # of the one clip of 5 frames that 7 images hold
    found = trainer.test(task, data, verbose=False)[0]
    batch = next(iter(data.test_dataloader()))
    tokenizer, judge = task.tokenizer.eval(), ClipEvaluation()
    with tokenizer.over_time(5), torch.no_grad():
        _, decoded = next(task.decodings(batch["image"], tokenizer.encode(batch["image"])))
    judge.update(decoded, batch["image"], 5)
    for name, value in judge.compute().items():
        assert found[f"test/{name}"] == pytest.approx(value, abs=1e-4), name
    assert found["test/clip_difference_psnr"] > 0
    assert not torch.equal(decoded, tokenizer.reconstruct(batch["image"]))


def test_codes_of_merged_frames_are_counted_and_predicted(tmp_path):
    task = tiny_task(bottleneck=partial(FSQBottleneck, levels=(4, 4, 3), temporal_merge=2))
    trainer, _ = fit(task, clips(), tmp_path, steps=2, callbacks=[CodebookUsage()])
    assert trainer.test(task, clips(), verbose=False)[0]["test/codebook_usage"] > 0
    batch = next(iter(clips().test_dataloader()))
    assert task.eval().predict_step(batch, 0)["latents"].shape[0] == 4 * 3
    assert task.predict_step({"image": batch["image"]}, 0)["latents"].shape[0] == 4 * 4


def test_reconstruct_streams_pieces_of_whole_latents(merging, images, tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "a", stairs(8))
    write_folder(tmp_path / "one", stairs(1))

    def run(folder, tokenizer=merging, **options):
        command = ["reconstruct", str(tmp_path / folder), "--folders", "clips", "--tokenizer", str(tokenizer)]
        options = {"size": 0, "out": tmp_path / "out"} | options
        assert main([*command, *(str(word) for k, v in options.items() for word in (f"--{k}", v))]) == 0
        return capsys.readouterr().out.split(" -> ")[0]

    whole = run("a")
    assert whole != run("a", images)
    assert run("one") == run("one", images)
    in_tiles = run("a", tile=8, overlap=0, global_context="true")
    assert in_tiles == whole
    sizes, encode = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, images: sizes.append(len(images)) or encode(self, images))
    for pixels, expected in ((4, [3, 4, 1]), (3, [3, 2, 2, 1]), (1, [1, 2, 2, 2, 1])):
        sizes.clear()
        monkeypatch.setattr(of_clips, "PIXELS", 48 * 64 * pixels)
        assert run("a") == whole
        assert sizes == expected


def test_recipe_and_errors_on_the_command_line(images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads((images / "config.json").read_text())
    assert config["bottleneck"]["init_args"]["temporal_merge"] == 1
    assert main(["fit", "-c", "scenes_clips", "--model.bottleneck.temporal_merge", "0", "--run", "a"]) == 2
    line = capsys.readouterr().err.strip()
    assert "temporal_merge" in line
    assert "an integer >= 1" in line
