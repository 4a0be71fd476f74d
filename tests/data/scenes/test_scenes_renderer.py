"""The renderer: determinism, geometry, what the labels say against what is drawn, motion, speed."""

import itertools
import time

import numpy as np
import pytest

from uniflow.data.scenes import CLASS_NAMES, SKY_DEPTH, Renderer, Rendering, sample_scene
from uniflow.data.scenes.scene import BACKGROUNDS, MAX_OBJECTS
from uniflow.data.scenes.shapes import SHAPES
from uniflow.data.scenes.textures import TEXTURES


@pytest.fixture(scope="module")
def renderings() -> list[Rendering]:
    renderer = Renderer(64)
    return [renderer.sample(3, i) for i in range(300)]


def test_same_arguments_give_the_same_picture() -> None:
    first, again = Renderer(48).sample(5, 7), Renderer(48).sample(5, 7)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.depth, again.depth)
    for other in (Renderer(48).sample(5, 8), Renderer(48).sample(6, 7), Renderer(48).sample(5, 7, stream=1)):
        assert (first.image != other.image).mean() > 0.3


@pytest.mark.parametrize("size", [64, (64, 96), (120, 56), (33, 47)])
def test_any_size(size: int | tuple[int, int]) -> None:
    shape = (size, size) if isinstance(size, int) else size
    drawn = Renderer(size).sample(0, 4)
    assert drawn.image.shape == (3, *shape)
    assert drawn.image.dtype == np.uint8
    assert drawn.mask.shape == drawn.instances.shape == drawn.depth.shape == shape
    assert (drawn.mask.dtype, drawn.depth.dtype) == (np.uint8, np.float32)


@pytest.mark.parametrize("size", [8, (16, 80)])
def test_bad_size_is_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 16 pixels"):
        Renderer(size)


def test_larger_pictures_show_the_same_scene() -> None:
    small, large = Renderer(64).sample(1, 2), Renderer(256).sample(1, 2)
    assert small.scene == large.scene
    agree = small.mask == large.mask[2::4, 2::4]
    assert agree.mean() > 0.97


def test_main_object_is_nearest_largest_and_never_hidden(renderings: list[Rendering]) -> None:
    for drawn in renderings:
        main, *others = drawn.scene.objects
        assert all(o.depth > main.depth and o.radius < 0.65 * main.radius for o in others)
        assert drawn.visibility[0] == 1
        assert drawn.mask[drawn.instances == 1].max() == drawn.label + 1


def test_no_object_is_hidden_beyond_recognition(renderings: list[Rendering]) -> None:
    assert min(drawn.visibility.min() for drawn in renderings) > 0.15


def test_every_choice_occurs(renderings: list[Rendering]) -> None:
    labels = np.bincount([d.label for d in renderings], minlength=len(CLASS_NAMES))
    assert labels.min() > 300 / len(CLASS_NAMES) / 3
    assert {d.scene.background for d in renderings} == set(BACKGROUNDS)
    assert {o.texture for d in renderings for o in d.scene.objects} == set(TEXTURES)
    counts = np.bincount([len(d.scene.objects) for d in renderings], minlength=MAX_OBJECTS + 1)
    assert counts[0] == 0
    assert counts[1:].min() > 300 / MAX_OBJECTS / 2


def test_nearer_objects_hide_farther_ones(renderings: list[Rendering]) -> None:
    """Wherever an object is drawn, its depth stands in the depth map, in front of its background."""
    for drawn in renderings:
        assert drawn.depth.min() > 0
        assert drawn.depth.max() <= SKY_DEPTH
        for i, o in enumerate(drawn.scene.objects):
            inside = drawn.instances == i + 1
            assert abs(drawn.depth[inside] - o.depth).max() < 0.2


def test_boxes_hold_exactly_the_visible_pixels(renderings: list[Rendering]) -> None:
    for drawn in renderings[:50]:
        for i, (x0, y0, x1, y1) in enumerate(drawn.boxes.astype(int)):
            visible = drawn.instances == i + 1
            assert visible[y0:y1, x0:x1].sum() == visible.sum()
            assert visible[y0].any()
            assert visible[:, x1 - 1].any()


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_shape_is_a_signed_distance_around_the_unit_circle(name: str) -> None:
    axis = np.linspace(-1.4, 1.4, 141, dtype=np.float32)
    distance = SHAPES[name](axis[None], axis[:, None])
    inside = distance < 0
    assert 0.9 < inside.sum() * 0.02**2 < 2.7  # areas alike, so that the class does not follow from the size
    assert not inside[:8].any()
    assert not inside[:, :8].any()
    gradient = np.hypot(*np.gradient(distance, 0.02))
    outline = np.abs(distance) < 0.03
    assert np.median(gradient[outline]) == pytest.approx(1, abs=0.1)


def test_shapes_differ_from_one_another() -> None:
    axis = np.linspace(-1.2, 1.2, 81, dtype=np.float32)
    silhouettes = [shape(axis[None], axis[:, None]) < 0 for shape in SHAPES.values()]
    for i, a in enumerate(silhouettes):
        for b in silhouettes[i + 1 :]:
            assert (a & b).sum() / (a | b).sum() < 0.93


def test_pictures_have_fine_texture(renderings: list[Rendering]) -> None:
    """The mean colour of each 8 x 8 patch is a poor picture of a scene."""
    errors = []
    for drawn in renderings:
        patches = drawn.image.reshape(3, 8, 8, 8, 8).astype(np.float32) / 255
        errors.append(((patches - patches.mean(axis=(2, 4), keepdims=True)) ** 2).mean())
    assert -10 * np.log10(np.mean(errors)) < 22


def test_clip_moves_and_keeps_its_ids() -> None:
    renderer = Renderer(64)
    scene = sample_scene(0, 9)
    frames = renderer.clip(scene, 12)
    np.testing.assert_array_equal(frames[0].image, renderer.render(scene).image)
    assert (frames[0].image != frames[-1].image).mean() > 0.05
    for before, after in itertools.pairwise(frames):
        same = (before.instances == 1) & (after.instances == 1)
        assert same.sum() > 0.5 * (before.instances == 1).sum()


def test_long_clips_stay_in_the_frame() -> None:
    renderer = Renderer(32)
    for index in range(20):
        assert renderer.render(sample_scene(0, index), time=500).visibility[0] == 1


def test_speed() -> None:
    """Under 1 ms a picture on one quiet core; the bound is loose, for machines that are neither."""
    renderer = Renderer(64)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for index in range(100):
            renderer.sample(0, index)
        best = min(best, (time.process_time() - start) / 100)
    assert best < 2.5e-3
