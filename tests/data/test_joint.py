"""Joint crops: image, mask, depth and boxes move together, and the image's pixels are those of the plain crops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from torch.utils.data import Dataset
from torchvision.tv_tensors import BoundingBoxes, Image, Mask, Video

from uniflow.data import CroppedImages, Scenes
from uniflow.data.collate import collate
from uniflow.data.images.transforms import CenterCrop, RandomResizedCrop
from uniflow.data.joint import JointCenterCrop, JointRandomCrop, nearest
from uniflow.data.sampler import sample_generator

HEIGHT, WIDTH = 90, 120
OBJECT = (30, 20, 70, 60)  # left, top, right, bottom


def scene() -> dict[str, Any]:
    """A white rectangle on black, in all fields; a second box in the lower right corner."""
    left, top, right, bottom = OBJECT
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    mask[top:bottom, left:right] = 7
    depth = torch.full((HEIGHT, WIDTH), 9.5)
    depth[top:bottom, left:right] = 1.25
    return {
        "image": (mask > 0).to(torch.uint8).mul(255).expand(3, -1, -1),
        "mask": mask,
        "depth": depth,
        "boxes": torch.tensor([OBJECT, (115, 85, 120, 90)]),
        "labels": torch.tensor([7, 3]),
        "words": ["square", "corner"],
        "caption": "a square",
        "label": 4,
    }


def extent(inside: torch.Tensor) -> torch.Tensor:
    """The box around the pixels that are true."""
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


@pytest.mark.parametrize("size", [None, (48, 64), (200, 180)])
def test_an_object_moves_together_in_all_fields(size: tuple[int, int] | None) -> None:
    crop = JointRandomCrop(RandomResizedCrop(64, scale=(0.3, 1.0)))
    flips = set()
    for seed in range(30):
        result = crop(scene(), sample_generator(seed, 0), size)
        flips.add(crop.crop.draw(HEIGHT, WIDTH, sample_generator(seed, 0), size).flipped)
        assert result["image"].shape == (3, *(size or (64, 64)))
        inside = result["mask"] == 7
        assert (result["image"][0] > 127).ne(inside).float().mean() < 0.01
        assert torch.equal(result["depth"] == 1.25, inside)
        assert set(result["depth"].unique().tolist()) <= {1.25, 9.5}
        assert (result["boxes"][0] - extent(inside)).abs().max() <= 1
        assert result["labels"][0] == 7
        assert len(result["boxes"]) == len(result["labels"])
        assert (result["caption"], result["label"]) == ("a square", 4)
    assert flips == {True, False}


def test_the_centre_crop_moves_all_fields() -> None:
    for size, share in ((45, 1.0), (64, 0.875), (180, 0.5)):
        result = JointCenterCrop(CenterCrop(size, share))(scene())
        inside = result["mask"] == 7
        assert (result["image"][0] > 127).ne(inside).float().mean() < 0.01
        assert torch.equal(result["depth"] == 1.25, inside)
        assert (result["boxes"][0] - extent(inside)).abs().max() <= 1
        assert result["labels"].tolist() == [7]  # the corner is cut off, and its label with it


def test_a_flip_alone() -> None:
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    before = scene()
    for flip in (0.0, 1.0):
        result = JointRandomCrop(RandomResizedCrop(WIDTH, flip=flip, **whole))(
            before, sample_generator(0, 0), (HEIGHT, WIDTH)
        )
        for name in ("image", "mask", "depth"):
            assert torch.equal(result[name], before[name].flip(-1) if flip else before[name])
        boxes = [[50, 20, 90, 60], [0, 85, 5, 90]] if flip else before["boxes"].tolist()
        assert result["boxes"].tolist() == boxes
        assert result["boxes"].dtype == torch.float32
        assert result["labels"].tolist() == [7, 3]


def test_boxes_are_clipped_and_small_rests_are_dropped_with_their_fields() -> None:
    fields = {"boxes": [[-10.0, 10, 40, 30], [60, 60, 60, 80], [0, 0, 2, 50], [200, 0, 300, 9]], "words": list("abcd")}
    sample = scene() | fields | {"labels": torch.arange(4)}
    keep_all = CenterCrop(HEIGHT)  # cuts 15 pixels off on the left and on the right
    result = JointCenterCrop(keep_all, box_fields=("labels", "words", "absent"))(sample)
    assert result["boxes"].tolist() == [[0, 10, 25, 30]]
    assert (result["labels"].tolist(), result["words"]) == ([0], ["a"])
    assert len(JointCenterCrop(keep_all, box_fields=("labels",))(sample)["words"]) == 4
    assert JointCenterCrop(keep_all, min_box_side=21)(sample)["boxes"].shape == (0, 4)
    assert JointCenterCrop(keep_all, min_box_side=20)(sample)["boxes"].shape == (1, 4)
    assert JointCenterCrop(keep_all)(scene() | {"boxes": [], "labels": []})["boxes"].shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (37, 64), (300, 200), (64, 1001)])
def test_the_pixels_are_those_of_the_plain_crops(shape: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for sample in ({"image": image}, {"image": Image(image), "mask": torch.zeros(shape)}):
        for seed in range(5):
            for size in (None, (17, 40)):
                plain = RandomResizedCrop(32)(image, sample_generator(seed, 1), size)
                joint = JointRandomCrop(RandomResizedCrop(32))(sample, sample_generator(seed, 1), size)
                assert torch.equal(joint["image"], plain)
        for share in (0.5, 1.0):
            joint = JointCenterCrop(CenterCrop(32, share))(sample)
            assert torch.equal(joint["image"], CenterCrop(32, share)(image))
        assert type(joint["image"]) is torch.Tensor


def test_masks_are_aligned_with_the_image_to_the_centre_of_a_pixel() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 256, 256)
    for size in (32, 100, 256, 300):
        result = JointCenterCrop(CenterCrop(size))({"image": ramp, "mask": ramp[0]})
        inner = slice(size // 8, -size // 8)
        difference = result["mask"][inner, inner].float() - result["image"][0][inner, inner].float()
        assert difference.mean().abs() <= 0.51  # half a source pixel, where torchvision's is half a result's pixel


def test_any_dtype_and_leading_dimensions_keep_their_values() -> None:
    plan = CenterCrop(20, 0.8).plan(HEIGHT, WIDTH)
    numbers = torch.arange(2 * HEIGHT * WIDTH).reshape(2, HEIGHT, WIDTH) + 2**40
    assert torch.equal(nearest(numbers, plan)[1] - HEIGHT * WIDTH, nearest(numbers[0], plan))
    assert torch.isin(nearest(numbers, plan), numbers).all()
    holes = torch.full((HEIGHT, WIDTH), torch.nan)
    assert nearest(holes, plan).isnan().all()
    assert nearest(holes > 0, plan).dtype == torch.bool


def test_fields_of_any_name_are_found_by_their_type() -> None:
    before = scene()
    sample = before | {"instances": Mask(before["mask"]), "right": Image(before["image"])}
    sample["boxes"] = BoundingBoxes(before["boxes"], format="XYXY", canvas_size=(HEIGHT, WIDTH))
    result = JointRandomCrop(RandomResizedCrop(32))(sample, sample_generator(3, 0))
    assert torch.equal(result["instances"], result["mask"])
    assert torch.equal(result["right"], result["image"])
    plain = JointRandomCrop(RandomResizedCrop(32))(before, sample_generator(3, 0))
    assert torch.equal(result["boxes"], plain["boxes"])
    assert not any(type(value).__module__.startswith("torchvision") for value in result.values())
    assert set(sample) == set(result)
    assert isinstance(sample["instances"], Mask)  # the sample itself is left alone


def boxes(**settings: Any) -> BoundingBoxes:
    arguments = {"format": "XYXY", "canvas_size": (HEIGHT, WIDTH), **settings}
    return BoundingBoxes([[0.0, 0.0, 5.0, 5.0]], **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": torch.zeros(45, 60)}, r"'mask' has height and width \(45, 60\), but the image has \(90, 120\)"),
        ({"normals": torch.zeros(3, HEIGHT, WIDTH)}, "'normals' has the image's height and width; wrap it"),
        ({"clip": Video(torch.zeros(2, 3, HEIGHT, WIDTH))}, "'clip' is a Video"),
        ({"boxes": torch.zeros(3, 5)}, r"must have shape \(n, 4\), not \(3, 5\)"),
        ({"boxes": boxes(format="XYWH")}, "'boxes' holds XYWH boxes"),
        ({"boxes": boxes(canvas_size=(10, 10))}, r"on a canvas of \(10, 10\)"),
        ({"cars": boxes()}, "'cars' holds XYXY boxes .* must be in the field 'boxes'"),
        ({"labels": torch.zeros(3)}, "'labels' has 3 entries for 2 boxes"),
    ],
)
def test_a_field_that_does_not_fit_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointCenterCrop(CenterCrop(32))(scene() | fields)


def test_a_smallest_side_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="min_box_side must be positive"):
        JointRandomCrop(RandomResizedCrop(32), min_box_side=0)


def test_cropped_samples_make_a_batch() -> None:
    crop = JointRandomCrop(RandomResizedCrop(32))
    samples = [crop(scene(), sample_generator(0, i)) for i in range(4)]
    batch = collate(samples, Scenes.list_fields | {"labels", "words"})
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["mask"].shape == batch["depth"].shape == (4, 32, 32)
    assert len(batch["boxes"]) == len(batch["labels"]) == 4


class Painted(Dataset):
    """Scenes of several sizes, as a dataset of your own would read them."""

    def __init__(self, module: Segmentation, split: str) -> None:
        self.seed, self.training = module.seed, split == "train"
        self.train_crop, self.eval_crop = JointRandomCrop(module.train_crop), JointCenterCrop(module.eval_crop)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = scene()
        del sample["words"]
        if self.training:
            return self.train_crop(sample, sample_generator(self.seed, index), getattr(index, "size", None))
        return self.eval_crop(sample)


class Segmentation(CroppedImages):
    list_fields = frozenset({"boxes", "labels"})

    def __init__(self, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = root

    def make_dataset(self, split: str) -> Dataset:
        return Painted(self, split)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_module_of_your_own(workers: int) -> None:
    parser = ArgumentParser()
    parser.add_argument("--data", type=LightningDataModule)
    options = ("--data.root=x", "--data.size=32", "--data.buckets=[[24, 40], [40, 24]]", "--data.batch_size=4")
    config = parser.parse_args([f"--data={__name__}.Segmentation", *options, f"--data.num_workers={workers}"])
    data = parser.instantiate_classes(config).data
    shapes = set()
    for epoch in range(4):
        for batch in data.train_dataloader():
            shapes.add(tuple(batch["mask"].shape))
            assert batch["image"].shape[2:] == batch["mask"].shape[1:] == batch["depth"].shape[1:]
            assert [len(boxes) for boxes in batch["boxes"]] == [len(labels) for labels in batch["labels"]]
        data.position.begin(epoch + 1)
    assert shapes == {(4, 24, 40), (4, 40, 24)}
    assert next(iter(data.val_dataloader()))["mask"].shape == (4, 32, 32)
