"""Heads without labels, weights to start from, and images beside the data module's: each does what it says."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from PIL import Image
from tasks.test_pretraining import TINY, make_data, make_trainer

from uniflow.data.unlabelled import UnlabelledCrops
from uniflow.encoders import EmbeddedViT, EncoderOutput, SceneViT
from uniflow.heads.unsupervised import PatchHead, TeacherHead
from uniflow.start.copied import CopiedWeights
from uniflow.tasks.pretraining import ColorHead, DepthHead, LabelHead, MaskHead, Pretraining

TEACHER = partial(SceneViT, weights=None, **TINY)
LABEL = partial(LabelHead, num_classes=12)
SPEC = TEACHER().spec


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return next(iter(make_data().train_dataloader()))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs" / "inner"
    folder.mkdir(parents=True)
    for number in range(3):
        pixels = torch.randint(0, 256, (90, 120 + number, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder.parent


def built(**arguments: Any) -> Pretraining:
    torch.manual_seed(0)
    task = Pretraining(partial(EmbeddedViT, weights=None, **TINY), **arguments)
    task.configure_model()
    return task


@pytest.mark.parametrize("make", [PatchHead, partial(TeacherHead, teacher=TEACHER)], ids=["patch", "teacher"])
def test_the_weight_scales_the_gradient_of_the_first_block(make: Any, batch: dict[str, Any]) -> None:
    gradients = []
    for weight in (0.0, 1.0, 2.0):
        task = built(heads=[partial(make, weight=weight)])
        (loss,) = task.losses(task.encoder(batch["image"]), batch).values()
        loss.backward()
        gradients.append(task.encoder.get_parameter("model.blocks.0.attn.qkv.weight").grad)
    assert gradients[0].norm() == 0
    assert gradients[1].norm() > 0
    torch.testing.assert_close(gradients[2], 2 * gradients[1])


def test_patch_head_reads_the_layers_that_it_names(batch: dict[str, Any]) -> None:
    task = built(heads=[LABEL, partial(PatchHead, layers=[2])])
    output = task.encoder(batch["image"])
    before = task.losses(output, batch)["patch"]
    first, second = output.hidden_states
    output.hidden_states = (torch.zeros_like(first), second)
    assert task.losses(output, batch)["patch"] == before
    output.hidden_states = (first, torch.zeros_like(second))
    assert task.losses(output, batch)["patch"] != before


def measured(head: Any, prediction: Any, batch: dict[str, Any]) -> dict[str, Any]:
    metrics = head.metrics()
    head.update_metrics(metrics, prediction, batch)
    return metrics.compute()


def test_patch_head_knows_where_pixels_belong(batch: dict[str, Any]) -> None:
    """Tokens that are the patches, in the order of `unfold`, are read without an error."""
    spec = EmbeddedViT(weights=None, **TINY | {"embed_dim": 192, "num_heads": 3}).spec
    head = PatchHead(spec, layers=[1], rank=None)
    torch.nn.init.eye_(head.read[0].weight)
    torch.nn.init.zeros_(head.read[0].bias)
    images = batch["image"].float() / 255
    rows = [images[:, :, i : i + 8, j : j + 8].flatten(1) for i in range(0, 32, 8) for j in range(0, 32, 8)]
    output = EncoderOutput((torch.stack(rows, dim=1),) * 2, (images[:, :0],) * 2, (4, 4))
    assert measured(head, head(output), batch)["patch_psnr_1"] > 70
    off = measured(head, head(output) + 0.1, batch)["patch_psnr_1"]
    assert off.item() == pytest.approx(20.0, abs=1e-3)
    torch.testing.assert_close(head.loss(head(output) + 0.1, batch).exp(), torch.tensor(0.01))


def test_rank_limits_what_a_token_gives() -> None:
    torch.manual_seed(0)
    output = EncoderOutput((torch.randn(4, 16, 32),) * 2, (torch.randn(4, 1, 32),) * 2, (4, 4))
    ranks = {rank: PatchHead(SPEC, layers=[1], rank=rank)(output).flatten(0, 2) for rank in (3, None)}
    found = {rank: int(torch.linalg.matrix_rank(values - values.mean(0), rtol=1e-4)) for rank, values in ranks.items()}
    assert found == {3: 3, None: 32}


def test_teacher_head_compares_every_token_of_every_layer(batch: dict[str, Any]) -> None:
    head = TeacherHead(SPEC, TEACHER)
    teacher = head._teacher[0].encoder
    with torch.autocast("cpu", torch.bfloat16):
        output = teacher(batch["image"])
    exact = EncoderOutput(
        tuple(h.float() for h in output.hidden_states), tuple(p.float() for p in output.prefix_tokens), output.grid
    )
    assert head.loss(head(exact), batch) == 0
    for field in ("hidden_states", "prefix_tokens"):
        for layer in range(2):
            states = list(getattr(exact, field))
            states[layer] = states[layer] + 1
            changed = EncoderOutput(**{**vars(exact), field: tuple(states)})
            assert head.loss(head(changed), batch) > 0, (field, layer)


def test_teacher_head_measures_against_the_variance(batch: dict[str, Any]) -> None:
    head = TeacherHead(SPEC, TEACHER)
    means = head.targets(batch["image"]).mean(dim=(1, 2), keepdim=True).expand(2, 16, 17, 32)
    torch.testing.assert_close(head.loss(means, batch), torch.tensor(1.0))
    missed = measured(head, means, batch)
    assert set(missed) == {"teacher_first", "teacher_last"}
    torch.testing.assert_close(missed["teacher_last"], torch.tensor(1.0))


def test_the_teacher_is_neither_trained_nor_saved() -> None:
    head = TeacherHead(SPEC, TEACHER)
    assert all(name.startswith("maps.") for name in head.state_dict())
    assert not any(p.requires_grad for p in head._teacher[0].parameters())


def test_copied_weights_leave_the_rest_as_it_was(batch: dict[str, Any]) -> None:
    source, random = TEACHER(), built(heads=[PatchHead]).encoder
    encoder = built(heads=[PatchHead], start=CopiedWeights(lambda: source)).encoder
    copied = encoder.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(copied[name], value), name
    assert copied.keys() - source.state_dict().keys() == {
        "model.patch_embed.linear.weight",
        "model.patch_embed.linear.bias",
    }
    assert torch.equal(encoder.model.patch_embed.linear.weight, random.model.patch_embed.linear.weight)


def test_heads_with_labels_are_left_out_of_images_without(batch: dict[str, Any]) -> None:
    task = built(heads=[LABEL, partial(MaskHead, num_classes=13), DepthHead, ColorHead, PatchHead])
    output = task.encoder(batch["image"])
    assert set(task.losses(output, batch)) == {"label", "mask", "depth", "color", "patch"}
    assert set(task.losses(output, {"image": batch["image"]}, labelled=False)) == {"color", "patch"}
    with pytest.raises(KeyError, match="label"):  # labels that a data module should have given
        task.losses(output, {"image": batch["image"]})


def test_unlabelled_images_are_trained_on(tmp_path: Path, photographs: Path) -> None:
    exported = []
    for number, crops in enumerate((None, UnlabelledCrops(str(photographs), sizes=[32]))):
        lightning.seed_everything(0)
        task = Pretraining(partial(EmbeddedViT, weights=None, **TINY), [PatchHead, LABEL], unlabelled=crops)
        trainer = make_trainer(tmp_path / str(number), max_steps=2)  # the first one has a learning rate of 0
        trainer.fit(task, make_data())
        assert ("train/patch_unlabelled" in trainer.callback_metrics) == (crops is not None)
        assert "train/label_unlabelled" not in trainer.callback_metrics
        exported.append(task.encoder.state_dict()["model.patch_embed.linear.weight"])
    assert not torch.equal(*exported)


def test_crops_follow_torchs_random_state_and_settings(photographs: Path) -> None:
    crops = UnlabelledCrops(str(photographs), batch_size=8, sizes=[32, 64])
    drawn = []
    for seed in (0, 1, 2, 3, 0):
        torch.manual_seed(seed)
        drawn.append(crops.draw())
    assert torch.equal(drawn[0], drawn[4])
    assert {tuple(images.shape) for images in drawn} == {(8, 3, 32, 32), (2, 3, 64, 64)}
    assert all(images.dtype == torch.uint8 for images in drawn)


@pytest.mark.parametrize("setting", [{"scale": (0.9, 1.0)}, {"short_side": 45}])
def test_settings_of_crops_change_them(photographs: Path, setting: dict[str, Any]) -> None:
    drawn = []
    for arguments in ({}, setting):
        torch.manual_seed(0)
        drawn.append(UnlabelledCrops(str(photographs), sizes=[16], **arguments).draw())
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(PatchHead, SPEC, layers=[]), "different numbers from 1 to 2, not \\[\\]"),
        (partial(PatchHead, SPEC, layers=[3]), "different numbers from 1 to 2, not \\[3\\]"),
        (partial(PatchHead, SPEC, layers=[1, 1]), "different numbers from 1 to 2"),
        (partial(PatchHead, SPEC, rank=0), "rank must be an integer >= 1 or null, got 0"),
        (partial(TeacherHead, SPEC, partial(TEACHER, depth=3)), "teacher's num_layers is 3, the encoder's is 2"),
        (partial(UnlabelledCrops, "nowhere", sizes=[]), "sizes is empty"),
        (partial(UnlabelledCrops, "nowhere", batch_size=0), "must be at least 1"),
        (UnlabelledCrops("nowhere").draw, "nowhere holds no images"),
        (partial(CopiedWeights(partial(TEACHER, depth=3)), TEACHER()), "copied SceneViT does not fit.*unexpected"),
        (partial(CopiedWeights(partial(TEACHER, patch_size=4)), TEACHER()), "does not fit this encoder"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
