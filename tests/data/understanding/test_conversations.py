"""Conversations in LLaVA's format: what is read, what is skipped and named, padding, batches by length."""

import json

import numpy as np
import pytest
import torch
from cli_fixtures import write_conversations, write_photos

from uniflow.data.errors import DataError
from uniflow.data.understanding import Conversations
from uniflow.data.understanding.conversations import LengthSampler, fit_image, pad_to_aspect


@pytest.fixture
def folder(tmp_path):
    write_photos(tmp_path / "photos", ("train",))
    return tmp_path


def module(folder, samples=None, **settings):
    path = folder / "talk.json"
    if samples is None:
        write_conversations(path)
    else:
        path.write_text(samples if isinstance(samples, str) else json.dumps(samples))
    defaults = {"size": 16, "batch_size": 2, "num_workers": 0, "val": str(path), "test": str(path)}
    return Conversations(str(path), str(folder / "photos"), **(defaults | settings))


def said(*texts, image="train/class0/0.png", name="a", **more):
    turns = [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 5, texts, strict=False)]
    return {"id": name, "conversations": turns, **more} | ({"image": image} if image else {})


def test_images_turns_and_text_alone(folder):
    dataset = module(folder).make_dataset("train")
    assert len(dataset) == 6
    first, text = dataset[0], dataset[2]
    assert first["conversation"][0] == {"question": "<image>\nWhat color?", "answer": "red"}
    assert first["conversation"][1]["answer"] == "0"
    assert (first["image"].shape, first["image"].dtype) == ((3, 16, 16), torch.uint8)
    assert first["image"].any()
    assert not text["image"].any()
    assert "<image>" not in text["conversation"][0]["question"]
    assert first["name"] == "talk0"


def test_an_image_that_no_turn_names_is_put_in_front_and_kinds_are_kept(folder):
    sample = said("Who?", "me")
    sample["conversations"][0]["kind"] = "person"
    data = module(folder, [sample])
    dataset = data.make_dataset("val")
    assert dataset[0]["conversation"] == [{"question": "<image>\nWho?", "answer": "me", "kind": "person"}]
    assert data.question_kinds == ["person"]


BROKEN = {
    "none": ({"id": "none"}, "no list of conversations"),
    "odd": (said("a", name="odd"), "1 turns, not pairs"),
    "empty": (said("a", " ", name="empty"), "empty answer"),
    "twice": (said("<image>", "<image>", name="twice"), "says <image> 2 times and has one image"),
    "lost": (said("<image>", "b", image=None, name="lost"), "says <image> 1 times and has no image"),
    "roles": ({"id": "roles", "conversations": [{"from": "gpt", "value": "x"}] * 2}, "do not alternate"),
    "path": (said("a", "b", image=3, name="path"), "its image is not a path"),
}


def test_broken_samples_are_counted_and_named(folder):
    from uniflow.data.skipped import SkipLog

    data = module(folder, [*(sample for sample, _ in BROKEN.values()), said("a", "b")])
    data.skip_log = SkipLog(folder / "skipped.log")
    assert len(data.make_dataset("train")) == 1
    lines = (folder / "skipped.log").read_text().splitlines()
    assert len(lines) == len(BROKEN)
    for (name, (_, reason)), line in zip(BROKEN.items(), lines, strict=True):
        assert f"sample {name}\t" in line
        assert reason in line


def test_a_missing_image_is_skipped_and_named(folder):
    data = module(folder, [said("a", "b", image="no.png"), said("a", "b")])
    assert data.make_dataset("train")[0] is None
    [batch] = list(data.val_dataloader())
    assert len(batch["image"]) == 1
    assert data.skip_log.counts() == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    ("samples", "text"),
    [("{", "is not valid JSON"), ("{}", "must hold a JSON list"), ("[]", "the train split of .* is empty")],
)
def test_a_file_that_cannot_be_used_is_refused(folder, samples, text):
    with pytest.raises(DataError, match=text):
        module(folder, samples).make_dataset("train")


def test_missing_files_and_wrong_settings_are_refused(folder):
    with pytest.raises(DataError, match=r"none.json cannot be read"):
        Conversations("none.json", str(folder)).make_dataset("train")
    with pytest.raises(DataError, match="nowhere is not a folder; give the folder of the images"):
        Conversations("none.json", "nowhere").make_dataset("train")
    with pytest.raises(ValueError, match=r"val_fraction must be in \[0, 1\), not 1"):
        module(folder, val_fraction=1)
    with pytest.raises(ValueError, match="size must be at least 1"):
        module(folder, size=0)


def test_splits_share_no_sample(folder):
    samples = [said("a", "b", name=str(i)) for i in range(60)]
    data = module(folder, samples, val=None, test=None, val_fraction=0.2, test_fraction=0.3)
    names = [
        {data.make_dataset(split)[i]["name"] for i in range(len(data.make_dataset(split)))}
        for split in ("train", "val", "test")
    ]
    assert sum(map(len, names)) == len(set().union(*names)) == 60
    assert all(names)


@pytest.mark.parametrize(
    ("shape", "size", "padded"), [((4, 8), (6, 6), (8, 8)), ((8, 4), (6, 6), (8, 8)), ((4, 8), (3, 6), (4, 8))]
)
def test_padding_is_in_the_mean_colour_and_keeps_the_image_whole(shape, size, padded):
    image = torch.rand(2, 3, *shape)
    result = pad_to_aspect(image, size)
    assert result.shape[-2:] == padded
    top, left = (padded[0] - shape[0]) // 2, (padded[1] - shape[1]) // 2
    torch.testing.assert_close(result[..., top : top + shape[0], left : left + shape[1]], image)
    torch.testing.assert_close(result.mean(dim=(-2, -1)), image.mean(dim=(-2, -1)))


def test_padding_changes_the_image(folder):
    image = torch.randint(0, 256, (3, 8, 24), dtype=torch.uint8)
    padded, squeezed = (fit_image(image, (16, 16), pad) for pad in (True, False))
    assert padded.dtype == squeezed.dtype == torch.uint8
    assert not torch.equal(padded, squeezed)


def test_batches_have_similar_lengths_and_every_sample_once():
    lengths = np.random.default_rng(0).integers(1, 1000, 96)
    samplers = [LengthSampler(range(96), 2, rank, 0, 4, lengths) for rank in (0, 1)]
    ranks = [[int(i) for i in sampler] for sampler in samplers]
    assert sorted(ranks[0] + ranks[1]) == list(range(96))
    batches = [ranks[0][i : i + 4] + ranks[1][i : i + 4] for i in range(0, 48, 4)]
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 200 < np.ptp(lengths)
    samplers[0].set_epoch(1)
    assert [int(i) for i in samplers[0]] != ranks[0]


def test_by_length_changes_the_order(folder):
    samples = [said("a" * (i + 1), "b", name=str(i)) for i in range(12)]
    orders = [[b["name"] for b in module(folder, samples, by_length=by).train_dataloader()] for by in (True, False)]
    assert all(abs(int(a) - int(b)) == 1 for a, b in orders[0])
    assert orders[0] != orders[1]
