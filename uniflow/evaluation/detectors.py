"""Frozen models that name what is in an image: an object detector, and a judge of colors. Both of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from uniflow.core.errors import one_line
from uniflow.evaluation.geneval import COLORS, Box, Found

COLOR_PROMPTS = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


class ObjectDetector:
    """A detector of COCO's classes, such as DETR, YOLOS or Deformable DETR.

    Args:
        name: its folder, or its name on the hub; safetensors only.
        device: where it runs.

    Raises:
        ValueError: if it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.processor, self.model = _loaded(name, "AutoModelForObjectDetection", "--detector", device)

    @torch.no_grad()
    def __call__(self, image: Tensor, threshold: float) -> list[Found]:
        """Objects in an image, uint8 (3, H, W), whose score is above the threshold."""
        inputs = self.processor(images=to_pil_image(image), return_tensors="pt").to(self.model.device)
        size = torch.tensor([image.shape[-2:]])
        (found,) = self.processor.post_process_object_detection(
            self.model(**inputs), threshold=threshold, target_sizes=size
        )
        names = self.model.config.id2label
        rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        return [Found(names[label], score, tuple(box)) for label, score, box in rows]


class ColorJudge:
    """Names the color of an object by CLIP: the color whose prompts are nearest to the object's part of the image.

    Args:
        name: folder of a CLIP model, or its name on the hub; safetensors only.
        device: where it runs.

    Raises:
        ValueError: if it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.processor, self.model = _loaded(name, "CLIPModel", "--clip", device)
        self._colors: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor, boxes: Sequence[Box], name: str) -> list[str]:
        """The color, of `COLORS`, of each box of an image, uint8 (3, H, W), with objects called `name`."""
        if name not in self._colors:
            self._colors[name] = torch.stack([self._embedded(color, name) for color in COLORS])
        picture = to_pil_image(image)
        parts = [picture.crop(_inside(box, picture.size)) for box in boxes]
        inputs = self.processor(images=parts, return_tensors="pt").to(self.model.device)
        embedded = _unit(_pooled(self.model.get_image_features(**inputs)))
        return [COLORS[index] for index in (embedded @ self._colors[name].T).argmax(dim=1).tolist()]

    def _embedded(self, color: str, name: str) -> Tensor:
        texts = [prompt.format(color, name) for prompt in COLOR_PROMPTS]
        inputs = self.processor(text=texts, return_tensors="pt", padding=True).to(self.model.device)
        return _unit(_unit(_pooled(self.model.get_text_features(**inputs))).mean(dim=0))


def _pooled(output: Any) -> Tensor:
    """Embeddings (B, D), which transformers gives as a tensor or, since version 5, as an output's pooled part."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _inside(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in whole pixels of an image (width, height), at least one pixel wide and high."""
    left, top = (max(0, min(int(box[axis]), size[axis] - 1)) for axis in (0, 1))
    right, bottom = (max(int(-(-box[axis + 2] // 1)), start + 1) for axis, start in ((0, left), (1, top)))
    return left, top, min(right, size[0]), min(bottom, size[1])


def _loaded(name: str, kind: str, option: str, device: str) -> tuple[Any, Any]:
    """Processor and model of transformers."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{option} needs transformers: pip install 'uniflow[transformers]'") from error
    try:
        processor = transformers.AutoProcessor if kind == "CLIPModel" else transformers.AutoImageProcessor
        model = getattr(transformers, kind).from_pretrained(name, use_safetensors=True)
        return processor.from_pretrained(name), model.eval().requires_grad_(False).to(device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{option} {name} cannot be loaded: {one_line(error, 200)}") from error
