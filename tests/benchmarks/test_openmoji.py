"""The drawings of OpenMoji: which are taken, their names and splits. The client and the renderer are fakes."""

import hashlib
import io
import json
import sys
import tarfile
import types

import pytest
from PIL import Image

from benchmarks import openmoji
from benchmarks import real_parts as parts
from benchmarks.real_sources import Package

CODES = [f"1F{number:03X}" for number in range(60)]


def entry(code, skintone=""):
    return {"hexcode": code, "annotation": f"drawing {code}", "skintone": skintone}


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A client that brings 60 drawings and one of another tone of the skin; `write` makes another package."""

    def write(without=()):
        file = tmp_path / "openmoji.tgz"
        listed = [*map(entry, CODES), entry("1F044-1F3FB", "1")]
        files = {"package/data/openmoji.json": json.dumps(listed)}
        files |= {f"package/color/svg/{e['hexcode']}.svg": f"<svg>{e['hexcode']}</svg>" for e in listed}
        with tarfile.open(file, "w:gz") as tar:
            for name, text in files.items():
                if name not in without:
                    info = tarfile.TarInfo(name)
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setattr(openmoji, "OPENMOJI", Package("npm", "openmoji", "1.0", digest))

    script = tmp_path / "npm"
    script.write_text(f"#!{sys.executable}\nimport shutil\nshutil.copy({str(tmp_path / 'openmoji.tgz')!r}, 'o.tgz')\n")
    script.chmod(0o755)
    monkeypatch.setitem(parts.CLIENTS, "npm", [str(script), "pack"])

    def render(svg_string, width, height, background):
        content = io.BytesIO()
        Image.new("RGBA", (width, height), background).save(content, "PNG")
        return list(content.getvalue())

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=render))
    write()
    return write


def test_each_drawing_is_in_one_split_with_its_name(npm, tmp_path, capsys):
    assert openmoji.main([str(tmp_path / "real")]) == 0
    root = tmp_path / "real/openmoji"
    found = {split: sorted(path.stem for path in (root / split).glob("*.png")) for split in ("train", "val", "test")}
    assert sorted(code for codes in found.values() for code in codes) == CODES
    assert all(found.values())
    assert len(found["train"]) > 40
    code = found["val"][0]
    assert (root / "val" / f"{code}.txt").read_text() == f"drawing {code}\n"
    assert Image.open(root / "val" / f"{code}.png").size == (224, 224)
    assert f"{len(found['train'])} drawings for train" in capsys.readouterr().out
    assert openmoji.main([str(tmp_path / "real")]) == 0
    assert "there already" in capsys.readouterr().out


def test_what_cannot_be_made_is_one_line_and_leaves_nothing(npm, tmp_path, capsys, monkeypatch):
    npm(without=[f"package/color/svg/{CODES[3]}.svg"])
    assert openmoji.main([str(tmp_path / "real")]) == 2
    assert f"has no package/color/svg/{CODES[3]}.svg" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert openmoji.main([str(tmp_path / "real")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install resvg_py" in error
    assert not (tmp_path / "real/openmoji").exists()
