"""A decoder over time is trained on clips by the ordinary task, from a tokenizer of images."""

from functools import partial

import pytest
import torch
from tiny import ENCODER, FLOW, fit, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.data import SceneClips
from uniflow.encoders import SceneViT

FROZEN = partial(SceneViT, weights=None, depth=3, embed_dim=32, num_heads=2, tune="frozen")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tokenizer of images."""
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec))
    for parameter in model.decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("images")
    model.save_pretrained(folder)
    return folder


def clips():
    return SceneClips(32, 3, train_length=16, val_length=2, test_length=2, batch_size=4, num_workers=0)


def trained(images, tmp_path, data=None, **options):
    decoder = partial(FLOW, temporal_window=2)
    task = tiny_task(encoder=FROZEN, decoder=decoder, init_from=str(images), **options)
    _, losses = fit(task, data or clips(), tmp_path, steps=3)
    return task, losses


def changed(task, images):
    before = Tokenizer.from_pretrained(images).state_dict()
    after = task.tokenizer.state_dict()
    return {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}


def test_only_the_temporal_part_is_trained_and_images_stay_bit_for_bit(images, tmp_path):
    task, losses = trained(images, tmp_path, train_only="temporal")
    assert {name for name in changed(task, images) if "temporal" not in name} == set()
    for attention in task.tokenizer.decoder.global_stage.temporal:
        assert attention.projection.weight.abs().max() > 0
    batch = next(iter(clips().test_dataloader()))["image"]
    noise = torch.randn(6, 3, 32, 32)
    before, after = (
        model.eval().reconstruct(batch, noise=noise) for model in (Tokenizer.from_pretrained(images), task.tokenizer)
    )
    assert torch.equal(before, after)
    with task.tokenizer.decoder.over_time(3):
        in_time = task.tokenizer.reconstruct(batch, noise=noise)
    assert torch.equal(in_time[::3], before[::3])
    assert not torch.equal(in_time, before)
    images_only = trained(images, tmp_path, train_only="decoder")
    assert losses[0] == images_only[1][0]  # the same start
    assert {name.split(".")[0] for name in changed(images_only[0], images)} == {"decoder"}
    assert "decoder.head.final_proj.weight" in changed(images_only[0], images)


def test_images_teach_nothing_about_time(images, tmp_path):
    data = partial(tiny_scenes, train_length=32)
    with pytest.raises(ValueError, match="train_only 'temporal' of a decoder over time needs clips"):
        trained(images, tmp_path, data=data(), train_only="temporal")
    task, _ = trained(images, tmp_path, data=data(), train_only="decoder")
    for attention in task.tokenizer.decoder.global_stage.temporal:
        assert attention.projection.weight.abs().max() == 0


def test_evaluation_decodes_over_time(images, tmp_path):
    task, _ = trained(images, tmp_path, train_only="temporal")
    for attention in task.tokenizer.decoder.global_stage.temporal:
        attention.projection.weight.data.add_(torch.randn(32, 32) * 0.3)
    batch = next(iter(clips().test_dataloader()))
    task.eval()
    rows = []
    for frames in (3, 1):
        task.on_test_epoch_start()
        with torch.no_grad():
            task.test_step(batch | {"frames": frames}, 0)
        rows.append([row["psnr"] for row in task.evaluation.rows])
    assert [a == b for a, b in zip(*rows, strict=True)] == [True, False, False] * 2


def test_what_cannot_be_trained_is_one_line(images, tmp_path):
    with pytest.raises(ValueError, match="train_only: no trained parameter of the tokenizer has 'temporal'"):
        fit(tiny_task(train_only="temporal"), clips(), tmp_path)
    with pytest.raises(ValueError, match="no checkpoint, tokenizer or generator at nowhere"):
        trained("nowhere", tmp_path)
    wider = tiny_task(decoder=partial(FLOW, width=64, temporal_window=2), init_from=str(images))
    with pytest.raises(ValueError, match=r"do not fit|does not fit|shape"):
        fit(wider, clips(), tmp_path)
