"""Data modules of clips: which clips, which frames of them, batches, splits, what is skipped; moving scenes."""

import pytest
import torch
from clips import grey_of, stairs, write_clip, write_folder

from uniflow.data import ClipFolder, SceneClips, Scenes
from uniflow.data.sampler import SampleIndex


@pytest.fixture
def root(tmp_path):
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        (tmp_path / split).mkdir()
        for name in names:
            write_clip(tmp_path / split / f"{name}.mp4", stairs())
    write_folder(tmp_path / "train" / "frames", stairs())
    write_folder(tmp_path / "train" / "one picture", stairs(1))
    return tmp_path


def clips(root, **settings):
    return ClipFolder(str(root), **({"size": 32, "length": 4, "num_workers": 0, "batch_size": 2} | settings))


def test_batches_hold_all_frames_of_their_clips(root):
    module = clips(root, batch_size=3)
    (batch,) = list(module.train_dataloader())
    assert batch["image"].shape == (12, 3, 32, 32)
    assert batch["frames"] == 4
    for clip in batch["image"].unflatten(0, (3, 4)):
        first, *others = grey_of(clip)
        assert others == [first + 1, first + 2, first + 3]
    (batch,) = list(module.test_dataloader())
    assert batch["name"] == [f"d.mp4 frame {k:03d}" for k in range(4)]
    assert grey_of(batch["image"]) == [4, 5, 6, 7]  # the middle
    assert module.crops() == {"size": 32, "center_crop": 0.875, "length": 4, "stride": 1, "rate": None}


def test_files_and_folders_of_frames_are_found_and_split(root):
    module = clips(root)
    assert {split: names for split, (_, names) in module.split_files().items()} == {
        "train": ["a.mp4", "b.mp4", "frames"],
        "val": ["c.mp4"],
        "test": ["d.mp4"],
    }


def test_stride_length_and_rate_choose_frames(root):
    def frames(**settings):
        (batch,) = list(clips(root, **settings).test_dataloader())
        return grey_of(batch["image"])

    assert frames(stride=2) == [2, 4, 6, 8]
    assert frames(length=6) == [3, 4, 5, 6, 7, 8]
    assert frames(rate=5.0) == [2, 4, 6, 8]


def test_training_clips_are_functions_of_seed_epoch_and_index(root):
    def sample(seed=0, epoch=0):
        return clips(root, seed=seed).make_dataset("train")[SampleIndex(0, epoch)]["image"]

    assert torch.equal(sample(), sample())
    assert not torch.equal(sample(), sample(epoch=1))
    assert not torch.equal(sample(), sample(seed=1))
    starts = {grey_of(sample(epoch=epoch))[0] for epoch in range(12)}
    assert len(starts) > 4
    assert starts <= set(range(9))


def test_classes_and_aspect_buckets(tmp_path):
    for name in ("cats/a", "cats/b", "dogs/a"):
        write_folder(tmp_path / name, stairs(5))
    module = clips(tmp_path, batch_size=1, val=".", test="dogs")
    with pytest.raises(ValueError, match="bucket_by must be random"):
        clips(tmp_path, buckets=[32, 48], bucket_by="aspect")
    assert module.walk(tmp_path).names.strings() == ["cats/a", "cats/b", "dogs/a"]
    module = clips(tmp_path, batch_size=3, val_fraction=0.0, test_fraction=0.0)
    module.split_files()
    batch = module.collate([module.make_dataset("train")[k] for k in range(3)])
    assert module.class_names == ["cats", "dogs"]
    assert batch["label"].tolist() == [0] * 8 + [1] * 4


def test_what_cannot_be_read_is_skipped_and_named(root, caplog):
    data = (root / "test" / "d.mp4").read_bytes()
    (root / "test" / "broken.mp4").write_bytes(data[:500])
    write_clip(root / "test" / "short.mp4", stairs(3))
    module = clips(root)
    (batch,) = list(module.test_dataloader())
    assert len(batch["image"]) == 4
    assert module.skip_log.counts() == {"test": 2}
    assert "broken.mp4" in caplog.text
    assert "too short: 3 of the 4 frames of a clip" in caplog.text


def test_an_empty_folder_and_bad_numbers_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"ClipFolder: .* holds no clips .*\.avi"):
        clips(tmp_path).setup()
    for settings in ({"length": 0}, {"stride": 0}, {"rate": -1.0}):
        with pytest.raises(ValueError, match="ClipFolder: "):
            clips(tmp_path, **settings)


def test_scene_clips_move_and_repeat():
    def batch(**settings):
        module = SceneClips(
            **({"size": 32, "length": 3, "test_length": 4, "batch_size": 2, "num_workers": 0} | settings)
        )
        return next(iter(module.test_dataloader()))

    found = batch()
    assert found["image"].shape == (6, 3, 32, 32)
    assert found["frames"] == 3
    assert found["name"][4] == "scene 000001 frame 001"
    assert found["label"].shape == (6,)
    assert torch.equal(found["image"], batch()["image"])
    assert not torch.equal(found["image"], batch(seed=1)["image"])
    still = next(iter(Scenes(32, test_length=4, batch_size=2, num_workers=0).test_dataloader()))
    assert torch.equal(found["image"][::3], still["image"])  # clips begin as the scenes of the same numbers
    moved = (found["image"][1] != found["image"][0]).any(dim=0).float().mean()
    assert 0 < moved < 0.9
    assert batch(length=5)["image"].shape[0] == 10
