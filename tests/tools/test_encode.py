"""`uniflow encode` and the data module that reads its files: the latents are those of the images, once each."""

import json

import pytest
import torch
from cli_fixtures import write_photos, write_shards
from tiny import ENCODER, REGRESSION, tiny_scenes

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.data import CachedLatents, ImageFolder, WebDataset
from uniflow.data.errors import DataError
from uniflow.data.sampler import SampleIndex
from uniflow.tools import encode as tool
from uniflow.tools.encode import encode


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory):
    """A folder, the same in each call."""
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, REGRESSION(bottleneck.spec)).eval()
    model.set_latent_statistics([0.5] * 8, [2.0] * 8, 10)
    MODEL.update(path=str(tmp_path_factory.mktemp("tokenizer")), tokenizer=model)
    model.save_pretrained(MODEL["path"])


MODEL = {}


def scenes(**kwargs):
    sizes = {"size": 16, "train_length": 10, "val_length": 3, "test_length": 2, "batch_size": 2}
    return tiny_scenes(**(sizes | {"fields": ("caption", "mask"), "fresh_epochs": False} | kwargs))


def write(out, **options):
    encode(tokenizer=MODEL["path"], data=options.pop("data", None) or scenes(), out=out, shard_size=4, **options)
    return CachedLatents(str(out), batch_size=2, num_workers=0)


def online(batch):
    with torch.no_grad():
        return MODEL["tokenizer"].encode(batch["image"], normalize=True)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_latents_and_fields_are_those_of_the_images(tmp_path, dtype, error):
    cached, images = write(tmp_path, dtype=dtype), scenes()
    assert (cached.size, cached.class_names) == (16, images.class_names)
    for loader in ("train_dataloader", "val_dataloader", "plain_train_dataloader"):
        pairs = list(zip(getattr(cached, loader)(), getattr(images, loader)(), strict=True))
        assert sum(len(stored["latent"]) for stored, _ in pairs) == (3 if loader == "val_dataloader" else 10)
        for stored, original in pairs:
            assert stored["latent"].dtype == torch.float32
            torch.testing.assert_close(stored["latent"], online(original), rtol=error, atol=1e-4)
            assert stored["label"].tolist() == original["label"].tolist()
            assert list(stored["caption"]) == original["caption"]
            assert stored.keys() == (original.keys() - {"image", "mask"}) | {"latent"}


def test_every_view_is_drawn_by_sample_and_epoch(tmp_path):
    write_photos(tmp_path / "photos")
    folder = ImageFolder(str(tmp_path / "photos"), 16, num_workers=0)
    cached = write(tmp_path / "out", data=folder, flips=True, crops=2)
    crops = [[folder.datasets["train"][SampleIndex(i, epoch)]["image"] for epoch in (0, 1)] for i in range(4)]
    views = [online({"image": torch.stack([c, c.flip(-1)])}) for sample in crops for c in sample]
    expected = torch.stack(views).unflatten(0, (4, 2)).flatten(1, 2)  # (sample, view, C, h, w)
    dataset = cached.make_dataset("train")
    seen = set()
    for epoch in range(24):
        for i in range(4):
            sample = dataset[SampleIndex(i, epoch)]
            assert torch.equal(sample["latent"], dataset[SampleIndex(i, epoch)]["latent"])
            errors = (expected[i] - sample["latent"]).abs().flatten(1).max(dim=1).values
            assert errors.min() < 1e-2
            seen.add((i, int(errors.argmin())))
            assert sample["label"] == folder.datasets["train"][i]["label"]
    assert len(seen) == 16
    other = CachedLatents(str(tmp_path / "out"), num_workers=0, seed=1).make_dataset("train")
    assert any(not torch.equal(other[i]["latent"], dataset[i]["latent"]) for i in range(4))


def test_a_killed_call_goes_on_and_two_processes_write_what_one_does(tmp_path, monkeypatch, capsys):
    write(tmp_path / "whole")
    whole, stop = files(tmp_path / "whole"), tool.write_shard

    def killed(path, *args):
        if path.name == "train-000001.safetensors":
            raise KeyboardInterrupt
        stop(path, *args)

    monkeypatch.setattr(tool, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed")
    with pytest.raises(ValueError, match=r"is not complete yet; run the same `uniflow encode` again"):
        CachedLatents(str(tmp_path / "killed"))
    monkeypatch.setattr(tool, "write_shard", stop)
    capsys.readouterr()
    write(tmp_path / "killed")
    assert "train-000000" not in capsys.readouterr().out  # it is not made again
    assert files(tmp_path / "killed") == whole

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="is not complete yet"):
        write(tmp_path / "two")
    monkeypatch.setenv("RANK", "1")
    write(tmp_path / "two")
    assert files(tmp_path / "two") == whole


def test_a_stream_and_what_cannot_be_read(tmp_path):
    paths = write_shards(tmp_path)
    data = WebDataset(**paths, size=16, num_classes=2, num_workers=0, batch_size=3)
    cached = write(tmp_path / "stream", data=data)
    labels = [int(batch["label"][0]) for batch in CachedLatents(str(tmp_path / "stream"), 1, 0).val_dataloader()]
    assert labels == [0, 1, 0, 1]
    assert len(cached.make_dataset("train")) == 4
    with pytest.raises(ValueError, match="--crops needs data whose samples have numbers"):
        write(tmp_path / "crops", data=WebDataset(**paths, size=16, num_workers=0, batch_size=1), crops=1)

    told = WebDataset(**paths, size=16, num_workers=0, batch_size=3, caption="txt")
    write(tmp_path / "told", data=told, flips=True)
    dataset = CachedLatents(str(tmp_path / "told")).make_dataset("train")
    captions = [{dataset[SampleIndex(i, epoch)]["caption"] for epoch in range(8)} for i in range(4)]
    assert captions == [{f"red star {i}"} for i in range(4)]  # of flips, too

    (write_photos(tmp_path / "photos") / "train/class0/0.png").write_bytes(b"broken")
    encode(tokenizer=MODEL["path"], images=tmp_path / "photos", size=16, out=tmp_path / "photos_out")
    index = json.loads((tmp_path / "photos_out/index.json").read_text())
    assert index["shards"] == {"train": [3], "val": [4]}
    assert index["skipped"] == {"train": 1, "val": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, 'made with another dtype ("float16", now "bfloat16")'),
        ({"flips": True}, "made with another flips"),
        ({"data": scenes(train_length=12)}, "made with another data"),
        ({"crops": -1}, "--crops must be at least 0"),
        ({"images": "photos"}, "either --images FOLDER or --data"),
    ],
    ids=lambda options: next(iter(options)) if isinstance(options, dict) else "",
)
def test_other_options_are_refused(tmp_path, options, message):
    encode(tokenizer=MODEL["path"], data=scenes(train_length=1, val_length=1), out=tmp_path, shard_size=4)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "data": {**index["data"], "train": 10, "val": 3}}))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        write(tmp_path, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_folder_of_latents_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold latents: it has no index\.json"):
        CachedLatents(str(tmp_path))
    cached = write(tmp_path)
    with pytest.raises(ValueError, match="has no test split, because the test judges images"):
        cached.test_dataloader()
    shard = tmp_path / "train-000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"train-000000\.safetensors is damaged"):
        list(cached.train_dataloader())
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-000000\.safetensors is missing"):
        CachedLatents(str(tmp_path))
    for text, message in (("{", "not valid JSON"), ('{"kind": "x"}', "does not describe latents of format 1")):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            CachedLatents(str(tmp_path))
