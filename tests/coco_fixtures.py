"""A tiny data set in COCO's layout."""

import json

import numpy as np
from PIL import Image

# COCO's ids have gaps: 12 comes after 11 in no file of it.
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]
HEIGHT, WIDTH = 40, 60
BOX = [12.0, 8.0, 30.0, 20.0]  # left, top, width, height


def annotation(id, image=1, category=13, box=BOX, **more):
    left, top, width, height = box
    right, bottom = left + width, top + height
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {
        "id": id,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": 100.0 + id,
        "iscrowd": 0,
        "segmentation": [polygon],
    } | more


def write_coco(
    root, annotations=None, images=range(1, 9), categories=CATEGORIES, name="train2017", sizes=(HEIGHT, WIDTH)
):
    """A tiny data set: grey images, white inside of BOX."""
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    listed = []
    for number in images:
        file = f"{number:012d}.png"
        pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        pixels[8:28, 12:42] = 255
        Image.fromarray(pixels).save(root / name / file)
        listed.append({"id": number, "file_name": file, "height": sizes[0], "width": sizes[1]})
    content = {"images": listed, "categories": categories, "annotations": annotations or []}
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
