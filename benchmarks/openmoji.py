"""The drawings of OpenMoji with their names: pictures and captions for a generator from text.

    python benchmarks/openmoji.py data/real

writes DIR/openmoji/{train,val,test}/CODE.png, 224 pixels on white, and CODE.txt with the drawing's name beside it.
The package comes through npm and is checked by its SHA-256; resvg_py renders it (`pip install resvg_py`). Drawings that
differ from another one in the tone of the skin alone are left out. Licence: CC BY-SA 4.0, openmoji.org.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from benchmarks.real_parts import fetch
from benchmarks.real_sources import OPENMOJI
from uniflow.core.atomic import replacing

SIDE = 224
SHARES = {"val": 0.05, "test": 0.10}  # of the drawings, up to which share of the hashes; the others are for training
LIST, DRAWINGS = "package/data/openmoji.json", "package/color/svg/"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the drawings if they are not there; 2 and one line on stderr if they cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to; made if it is not there")
    folder: Path = parser.parse_args(argv).folder
    target = folder / "openmoji"
    try:
        if target.is_dir():
            print(f"{target}: there already")
            return 0
        counts = make(fetch(OPENMOJI, folder), target)
    except (ValueError, OSError, tarfile.TarError, ImportError) as error:
        hint = "; pip install resvg_py" if isinstance(error, ImportError) else ""
        print(f"openmoji: error: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        return 2
    print(f"{target}: " + ", ".join(f"{count} drawings for {split}" for split, count in counts.items()))
    return 0


def make(package: Path, target: Path) -> dict[str, int]:
    """Write the drawings of a package's file; their number for each split.

    Raises:
        ImportError: without resvg_py.
        ValueError: if the package lacks a drawing of its list.
    """
    import resvg_py

    counts = dict.fromkeys(("train", *SHARES), 0)
    with replacing(target) as new:
        for split in counts:
            (new / split).mkdir(parents=True)
        for code, name, svg in drawings(package):
            split = split_of(code)
            png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, background="white")
            Image.open(io.BytesIO(bytes(png))).convert("RGB").save(new / split / f"{code}.png")
            (new / split / f"{code}.txt").write_text(name + "\n")
            counts[split] += 1
    return counts


def drawings(package: Path) -> Iterator[tuple[str, str, str]]:
    """Code, name and SVG of each drawing without a tone of the skin."""
    with tarfile.open(package) as archive:
        files = {member.name: member for member in archive if member.name == LIST or member.name.startswith(DRAWINGS)}
        listed = json.loads(_content(archive, files[LIST]))
        for entry in listed:
            if not entry["skintone"]:
                path = f"{DRAWINGS}{entry['hexcode']}.svg"
                if path not in files:
                    raise ValueError(f"{package} has no {path}")
                yield entry["hexcode"], entry["annotation"], _content(archive, files[path]).decode()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is not a file")
    return file.read()


def split_of(code: str) -> str:
    """The split of a drawing: a function of its code alone."""
    share = int(hashlib.sha256(code.encode()).hexdigest()[:8], 16) / 2**32
    return next((split for split, edge in SHARES.items() if share < edge), "train")


if __name__ == "__main__":
    sys.exit(main())
