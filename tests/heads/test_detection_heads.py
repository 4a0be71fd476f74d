"""FCOS, Faster R-CNN and Mask R-CNN over the simple pyramid: places, labels, losses, broken batches."""

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads import FasterRCNNHead, FCOSHead, MaskRCNNHead
from uniflow.heads.pyramid import SimplePyramid
from uniflow.heads.strides import CellAnchors, pooler

CLASSES = 3
KINDS = {
    "fcos": (FCOSHead, {"convs": 1}),
    "faster": (FasterRCNNHead, {"hidden": 16, "proposals": 30}),
    "mask": (MaskRCNNHead, {"hidden": 16, "proposals": 30, "mask_channels": 8}),
}


def make(kind="fcos", width=16, patch_size=14, **settings):
    torch.manual_seed(0)
    cls, own = KINDS[kind]
    spec = FeatureSpec(width, patch_size, 1, 0, 70)
    return cls(spec, CLASSES, **({"channels": 32, "scales": [2, 1, 0.5]} | own | settings))


def features(grid=(5, 4), width=16, count=2):
    tokens = torch.randn(count, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(1))
    return EncoderOutput((tokens,), (tokens[:, :0],), grid)


def batch(boxes=((8.0, 8.0, 40.0, 50.0),), labels=(2,), **fields):
    """Two images of 70 x 56 pixels; the second one has no boxes."""
    boxes, none = torch.tensor(boxes).reshape(-1, 4), torch.zeros(0, 4)
    labels = torch.tensor(labels, dtype=torch.int64)
    masks = torch.zeros(len(boxes), 70, 56, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return {
        "image": torch.zeros(2, 3, 70, 56, dtype=torch.uint8),
        "boxes": [boxes, none],
        "box_labels": [labels, labels[:0]],
        "box_masks": [masks, masks[:0]],
    } | fields


def test_the_pyramid_has_the_sizes_of_its_scales():
    maps = SimplePyramid(16, 8, (4, 2, 1, 0.5, 0.25))(torch.randn(2, 16, 5, 6))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 20, 24), (8, 10, 12), (8, 5, 6), (8, 3, 3), (8, 2, 2)]


@pytest.mark.parametrize("scales", [(), (3,), (1, 2), (2, 2), (0,), (-1,)])
def test_wrong_scales_are_refused(scales):
    with pytest.raises(ValueError, match=r"SimplePyramid.scales"):
        SimplePyramid(16, 8, scales)


def test_the_width_of_finer_maps_is_vitdets_and_not_below_64():
    def widths(width):
        layers = SimplePyramid(width, 256).levels[0]
        return [layer.out_channels for layer in layers if isinstance(layer, nn.ConvTranspose2d)]

    assert widths(768) == [384, 192]
    assert widths(16) == [64, 64]


def test_anchors_stand_on_the_centres_of_cells_of_any_stride():
    anchors = CellAnchors((3.5, 7.0), size=2.0, aspect_ratios=(1.0, 4.0))
    maps = [torch.zeros(2, 1, 3, 5), torch.zeros(2, 1, 2, 3)]
    first, second = anchors(type("Images", (), {"image_sizes": [0, 0]}), maps)
    assert torch.equal(first, second)
    assert first.shape == (2 * (15 + 6), 4)
    centres, sides = (first[:, :2] + first[:, 2:]) / 2, first[:, 2:] - first[:, :2]
    torch.testing.assert_close(centres[:4], torch.tensor([[1.75, 1.75], [1.75, 1.75], [5.25, 1.75], [5.25, 1.75]]))
    torch.testing.assert_close(centres[-1], torch.tensor([17.5, 10.5]))
    torch.testing.assert_close(sides[:2], torch.tensor([[7.0, 7.0], [3.5, 14.0]]))


def test_a_box_is_read_where_it_is_at_strides_that_are_not_powers_of_two():
    """Maps whose values are the x of their cells' centres in pixels: a pooled cell has the x of its own centre."""
    strides = (7.0, 14.0)
    maps = {str(i): ((torch.arange(140 / s) + 0.5) * s).repeat(1, 1, round(140 / s), 1) for i, s in enumerate(strides)}
    boxes = torch.tensor([[21.0, 21.0, 77.0, 77.0], [10.0, 10.0, 130.0, 130.0]])
    read = pooler(strides, 7)(maps, [boxes], [(140, 140)])
    # torchvision's first cell starts half a cell of the map before the box.
    torch.testing.assert_close(read[0, 0, 3], 21 + (torch.arange(7) + 0.5) * 8 + 3.5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_parts_of_the_loss_and_reach_every_parameter(kind):
    head = make(kind)
    torch.manual_seed(0)
    parts = head.losses(head(features()), batch())
    torch.manual_seed(0)
    total = head.loss(head(features()), batch())
    assert len(parts) >= 3
    assert sum(part.item() for part in parts.values()) == pytest.approx(total.item(), rel=1e-6)
    total.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert total.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_boxes_give_a_finite_loss(kind):
    head = make(kind)
    loss = head.loss(head(features()), batch(boxes=(), labels=()))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_after_training_on_one_image(kind):
    """Box, label and mask come back in pixels and labels of the batch, and nothing on the empty image."""
    head = make(kind, score_threshold=0.3)
    steps = 45 if kind == "fcos" else 55  # two steps draw their samples, and take longer
    optimizer = torch.optim.AdamW(head.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(head(features()), batch()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        prediction = head(features())
        found = head.detect(prediction, batch()["image"])
    assert found[0]["labels"][0] == 2
    assert box_iou(found[0]["boxes"][:1], batch()["boxes"][0]) > 0.6
    assert len(found[1]["boxes"]) == 0
    if kind == "mask":
        assert found[0]["masks"].shape[1:] == (70, 56)
        both = (found[0]["masks"][0] & batch()["box_masks"][0][0]).sum()
        either = (found[0]["masks"][0] | batch()["box_masks"][0][0]).sum()
        assert both / either > 0.7
    metrics = head.metrics()
    head.update_metrics(metrics, prediction, batch())
    values = metrics.compute()
    assert values["map_50"] == 1
    assert ("mask_map" in values) == (kind == "mask")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_settings_of_results_change_them(kind):
    head, images = make(kind, score_threshold=0.0), batch()["image"]
    prediction = head(features())
    every = head.detect(prediction, images)[0]["scores"]
    assert (every.diff() <= 0).all()
    threshold = float(every[len(every) // 2])
    kept = make(kind, score_threshold=threshold).detect(prediction, images)[0]["scores"]
    assert 0 < len(kept) < len(every)
    assert (kept > threshold).all()
    assert len(make(kind, score_threshold=0.0, max_detections=5).detect(prediction, images)[0]["scores"]) == 5
    counts = []
    for strength in (0.01, 0.9):
        other = make(kind, score_threshold=0.0, max_detections=5000, nms_threshold=strength)
        for name, parameter in other.named_parameters():
            if name.endswith("bbox_reg.bias"):  # FCOS's boxes start without an area
                parameter.fill_(2.0)
        counts.append(len(other.detect(prediction, images)[0]["boxes"]))
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("fcos", "convs", 2), ("faster", "hidden", 8), ("faster", "proposals", 5), ("mask", "mask_channels", 4)],
)
@pytest.mark.parametrize("shared", [{}, {"channels": 64}, {"scales": [1, 0.5]}, {"weight": 2.0}])
def test_settings_change_the_loss(kind, name, value, shared):
    def loss(**settings):
        head = make(kind, **settings)
        with torch.no_grad():
            return (head.weight * head.loss(head(features()), batch())).item()

    assert loss(**(shared or {name: value})) != loss()


@pytest.mark.parametrize("ignored", [{"box_crowd": 1}, {"box_visibility": 0.1}])
def test_crowds_and_hidden_objects_are_not_trained_on(ignored):
    (name, value), *_ = ignored.items()
    head = make(min_visibility=0.2)
    with torch.no_grad():
        maps = head(features())
        alone = head.loss(maps, batch())
        both = batch(((8.0, 8.0, 40.0, 50.0), (20.0, 30.0, 55.0, 69.0)), (2, 1))
        other = 1 - value if name == "box_visibility" else 0
        marks = torch.tensor([other, value])
        assert head.loss(maps, both | {name: [marks, marks[:0]]}) == alone
        plain = torch.tensor([other, other])
        assert head.loss(maps, both | {name: [plain, plain[:0]]}) != alone
    assert head.truth(both | {name: [marks, marks[:0]]})[0]["iscrowd"].tolist() == [0, 1]


def test_an_evaluation_repeats_its_draws_and_leaves_those_of_training():
    head = make("faster")
    torch.manual_seed(5)
    with torch.no_grad():
        losses = {head.loss(head(features()), batch()).item() for _ in range(2)}
    assert len(losses) == 1
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after
    assert head.training
    assert head.detector.training


def test_masks_come_from_instances_too():
    head, given = make("mask"), batch()
    instances = torch.zeros(2, 70, 56, dtype=torch.uint8)
    instances[0][given["box_masks"][0][0]] = 3
    from_instances = {k: v for k, v in given.items() if k != "box_masks"} | {"instances": instances}
    assert torch.equal(head.truth(from_instances)[0]["masks"], given["box_masks"][0])
    instances[0, 0, 0] = 1
    with pytest.raises(ValueError, match="an image has 1 boxes, but 2 masks"):
        head.truth(from_instances)
    with pytest.raises(ValueError, match="needs box_masks or instances"):
        head.truth({k: v for k, v in given.items() if k != "box_masks"})


def test_bad_batches_and_settings_are_named():
    head = make()
    with pytest.raises(ValueError, match=r"needs boxes and box_labels in a batch; with Scenes set data.fields"):
        head.truth({"image": batch()["image"]})
    with pytest.raises(ValueError, match=r"box_labels must be in 0 ... 2 .*got 3 ... 3"):
        head.truth(batch(labels=(3,)))
    with pytest.raises(ValueError, match="channels must be a multiple of 32"):
        make(channels=48)
    with pytest.raises(ValueError, match="the data has 4 classes"):
        head.check_data(type("Data", (), {"class_names": list("abcd")}))


def test_sizes_are_judged_in_pixels_of_the_file():
    """An object of 32 x 42 pixels in the batch, but 8 x 10.5 in the file, is small."""
    head = make()
    given = batch() | {"image_scale": torch.tensor([4.0, 4.0])}
    for scaled, sizes in ((given, {"map_small"}), (batch(), {"map_medium"})):
        metrics = head.metrics()
        with torch.no_grad():
            head.update_metrics(metrics, head(features()), scaled)
        assert {name for name in metrics.compute() if name in ("map_small", "map_medium", "map_large")} == sizes
