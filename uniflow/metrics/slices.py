"""Where a tokenizer fails: simple statistics of the originals, and the metrics of the images that have much or little.

The statistics describe originals, not reconstructions, so all tokenizers are sliced alike on the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Row = Mapping[str, Any]

# ITU-R BT.601
LUMA = (0.299, 0.587, 0.114)
SMOOTH_BELOW = 0.02
EDGE_ABOVE = 0.3
STATISTICS = ("texture", "smooth", "edges", "chroma", "brightness")


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """What each image looks like, in five numbers.

    With the luma Y = .299 R + .587 G + .114 B, and where neighbours are needed without the border of one pixel:

    - "texture": mean of |Y(y-1, x) + Y(y+1, x) + Y(y, x-1) + Y(y, x+1) - 4 Y(y, x)|, in [0, 4];
    - "smooth": share of pixels whose gradient is shorter than `SMOOTH_BELOW` (5 of 255 levels), in [0, 1]. The gradient
      is (Y(y, x+1) - Y(y, x), Y(y+1, x) - Y(y, x));
    - "edges": share of pixels whose gradient is longer than `EDGE_ABOVE` (77 of 255 levels), in [0, 1]: sharp steps of
      high contrast, as text and line art have;
    - "chroma": mean of max(R, G, B) - min(R, G, B), in [0, 1]; 0 for grey images;
    - "brightness": mean of Y, in [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1]; both sides at least 3 pixels.

    Returns:
        Each statistic (B,), float32, by its name in `STATISTICS`.

    Raises:
        ValueError: for smaller images.
    """
    if min(images.shape[-2:]) < 3:
        raise ValueError(f"image statistics need at least 3 x 3 pixels, got {tuple(images.shape[-2:])}")
    images = images.float()
    luma = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1)
    centre, up, down = luma[:, 1:-1, 1:-1], luma[:, :-2, 1:-1], luma[:, 2:, 1:-1]
    left, right = luma[:, 1:-1, :-2], luma[:, 1:-1, 2:]
    laplacian = up + down + left + right - 4 * centre
    gradient = torch.hypot(right - centre, down - centre)
    chroma = images.amax(dim=1) - images.amin(dim=1)
    pixels = {
        "texture": laplacian.abs(),
        "smooth": (gradient < SMOOTH_BELOW).float(),
        "edges": (gradient > EDGE_ABOVE).float(),
        "chroma": chroma,
        "brightness": luma,
    }
    # So exact that equal images stay equal in any batch; Apple's GPUs have no float64.
    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    return {name: pixels[name].mean(dim=(1, 2), dtype=dtype).float() for name in STATISTICS}


def metric_names(rows: Sequence[Row]) -> list[str]:
    """The columns of `rows` that judge a reconstruction: all but the image's name and statistics."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("image", *STATISTICS)]


def slice_means(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means of the metrics over all images and over slices of them.

    The slices are, by each of `STATISTICS`, the third of the images that has least of it and the third that has most;
    and, if the names tell at least two first-level folders, each folder. Thirds and no fixed limits, because a
    statistic's range depends on the size and kind of the images; so compare slices of the same images only. Images
    that tie with the last of a third also belong to it; a statistic whose thirds would overlap gives no slices.

    Args:
        rows: one dict an image, as `Evaluation.rows` after `compute`.

    Returns:
        One dict a slice: "slice", "where" (the limit on the statistic), "count", and each metric's mean, in float64.
        A metric that no image of a slice has is left out.
    """
    metrics = metric_names(rows)
    table = []
    for name, where, chosen in [("all", "", list(rows)), *_thirds(rows), *_folders(rows)]:
        columns = {metric: [row[metric] for row in chosen if metric in row] for metric in metrics}
        means = {m: float(torch.tensor(v, dtype=torch.float64).mean()) for m, v in columns.items() if v}
        table.append({"slice": name, "where": where, "count": len(chosen), **means})
    return table


def _thirds(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    for name in STATISTICS:
        known = [row for row in rows if name in row]
        values = sorted(row[name] for row in known)
        if not values:
            continue
        third = -(-len(values) // 3)
        low, high = values[third - 1], values[-third]
        if low < high:
            yield f"{name}: lowest third", f"{name} <= {low:.6g}", [row for row in known if row[name] <= low]
            yield f"{name}: highest third", f"{name} >= {high:.6g}", [row for row in known if row[name] >= high]


def _folders(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    folders: dict[str, list[Row]] = {}
    for row in rows:
        folder, slash, _ = row["image"].partition("/")
        folders.setdefault(folder if slash else ".", []).append(row)
    if len(folders) > 1:
        for folder in sorted(folders):
            yield f"folder: {folder}", "", folders[folder]
