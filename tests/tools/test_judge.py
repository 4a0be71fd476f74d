"""`uniflow judge`: sets of images in folders and arrays, the same numbers as a test's, and what is refused."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from uniflow.evaluation.generated import GeneratedImages, judge_generated
from uniflow.metrics import EncoderFeatures, FeatureExtractor, inception_score


class Colors(FeatureExtractor):
    """The mean colour, whose channels are logits of classes, too."""

    name = "colors"

    def __call__(self, images):
        return images.mean(dim=(-2, -1))

    def with_logits(self, images):
        return self(images), 10 * self(images)

    def identity(self):
        return "mean colour"


def pixels(count, seed, side=16):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:06d}.png")


@pytest.fixture
def sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "real", pixels(12, 0))
    write(tmp_path / "made", pixels(11, 1) // 2)
    np.savez("made.npz", pixels(11, 1) // 2)
    return tmp_path


def judged(uniflow, *words):
    result = uniflow("judge", *words, "--num_workers", "0", "--device", "cpu", "--out", "out")
    assert result.code == 0, result.err
    with open("out/results.json") as file:
        return json.load(file)


def test_folder_and_array_give_the_numbers_of_a_test(sets, uniflow):
    folder = judged(uniflow, "made", "--reference", "real", "--batch_size", "5")
    settings = folder.pop("protocol/settings")
    array = judged(uniflow, "made.npz", "--reference", "real")
    assert array.pop("protocol/settings") == settings
    assert array.pop("protocol/fingerprint") == folder.pop("protocol/fingerprint")
    assert array == pytest.approx(folder, rel=1e-4)
    assert folder["frechet_scene_vit"] > 0
    assert {"kid_scene_vit", "precision_scene_vit", "recall_scene_vit"} < folder.keys()
    online = GeneratedImages(EncoderFeatures())
    images = {"real": pixels(12, 0), "": pixels(11, 1) // 2}
    online.update({name: torch.from_numpy(array).permute(0, 3, 1, 2) / 255 for name, array in images.items()}, None)
    gathered, _ = online.gather()
    numbers = judge_generated(gathered, None, {}, "scene_vit")
    assert {name: folder[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
    assert gathered["real"].contents == settings["reference"]["contents"] != gathered[""].contents


def test_the_reference_is_named_and_part_of_the_fingerprint(sets, uniflow):
    first = judged(uniflow, "made", "--reference", "real")
    settings = first["protocol/settings"]
    assert (settings["images"], settings["reference"]["images"]) == (11, 12)
    Image.fromarray(pixels(1, 9)[0]).save("real/000003.png")
    again = judged(uniflow, "made", "--reference", "real")
    assert again["protocol/settings"]["reference"]["contents"] != settings["reference"]["contents"]
    assert again["protocol/fingerprint"] != first["protocol/fingerprint"]


def test_other_features_and_the_inception_score(sets, uniflow):
    features = '[{"class_path": "test_judge.Colors"}, {"class_path": "uniflow.metrics.EncoderFeatures"}]'
    numbers = judged(uniflow, "made", "--reference", "real", "--features", features)
    logits = torch.from_numpy(pixels(11, 1) // 2).float().div(255).mean(dim=(1, 2)) * 10
    assert numbers["inception_score"] == pytest.approx(inception_score(logits), rel=1e-4)
    assert {"frechet_colors", "frechet_scene_vit"} < numbers.keys()


def test_the_grid_of_sampled_images_is_left_out_and_a_size_crops(sets, uniflow):
    whole = judged(uniflow, "made", "--reference", "real")
    Image.new("RGB", (64, 32)).save("made/grid.png")
    assert judged(uniflow, "made", "--reference", "real") == whole
    Image.new("RGB", (64, 32)).save("real/wide.png")
    message = "real: images of 16 x 16 and 32 x 64 pixels: give --size"
    assert message in uniflow("judge", "made", "--reference", "real", "--num_workers", "0").error
    cropped = judged(uniflow, "made", "--reference", "real", "--size", "8")
    assert cropped["protocol/settings"]["center_crop"] == 8
    assert cropped["frechet_scene_vit"] != whole["frechet_scene_vit"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "--reference", "real"), "no such image or folder: nowhere"),
        (("none.npz", "--reference", "real"), "none.npz holds no images"),
        (("text.npz", "--reference", "real"), "text.npz holds no images: File is not a zip file"),
        (("other.npz", "--reference", "real"), "it has no arr_0.npy"),
        (("floats.npz", "--reference", "real"), "arr_0 must be uint8 (N, H, W, 3) with N at least 2, not float64"),
        (("cut.npz", "--reference", "real"), "the file ends before the array does"),
        (("made.npz", "--reference", "real", "--size", "8"), "--size is for folders of images"),
        (("one", "--reference", "real"), "a set of images has 2 at least, and 1 can be read"),
        (("made", "--reference", "real", "--features", "[]"), "names must differ, got []"),
        (("made", "--reference", "real", "--batch_size", "0"), "--batch_size must lie between 1"),
    ],
)
def test_what_cannot_be_judged_is_one_line(sets, uniflow, words, message):
    write(sets / "one", pixels(1, 2))
    (sets / "text.npz").write_text("no array")
    np.savez("other.npz", images=pixels(2, 0))
    np.savez("floats.npz", pixels(2, 0).astype(float))
    np.savez("whole.npz", pixels(4, 0))
    with zipfile.ZipFile("whole.npz") as whole, zipfile.ZipFile("cut.npz", "w") as cut:
        cut.writestr("arr_0.npy", whole.read("arr_0.npy")[:-10])
    assert message in uniflow("judge", *words, "--num_workers", "0", "--device", "cpu").error
