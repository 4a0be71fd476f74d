"""The photographs that scikit-image and scikit-learn ship: real images without a download."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

# Photographs only: no drawings, scans of text or synthetic pictures. Of the stereo pair the left image, because two
# views of one scene could end up on both sides of a split.
PHOTOS = {
    "skimage/data": [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
        "brick.png",
        "camera.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "moon.png",
    ],
    "sklearn/datasets/images": ["china.jpg", "flower.jpg"],
}


def export_photos(out: Path) -> list[Path]:
    """Copy the installed packages' photographs into a folder, file by file as they are; nothing is downloaded.

    The packages' README files beside them name their sources and licences.

    Args:
        out: the folder; made if needed.

    Returns:
        The files written: 16 with scikit-image 0.26 and scikit-learn 1.9, 10 of them in colour.

    Raises:
        ValueError: if scikit-image or scikit-learn is not installed, or has no photographs.
    """
    sources = []
    for location, names in PHOTOS.items():
        package, _, folder = location.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(
                f"the photographs need scikit-image and scikit-learn, and {package} is not installed: "
                "pip install 'uniflow[dev]'"
            )
        files = [path for name in names if (path := Path(spec.origin).parent / folder / name).is_file()]
        if not files:
            raise ValueError(f"this version of {package} brings no photographs in {folder}")
        sources += files
    out.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(source, out / source.name)) for source in sources]
