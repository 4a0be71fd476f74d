"""What a tokenizer makes of one image: features, similarity, latents and errors, as images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from uniflow.core.part import build_part, part_config
from uniflow.core.pixels import to_unit_range
from uniflow.data.images.reading import read_image
from uniflow.data.images.transforms import resize_short_side
from uniflow.encoders.base import EncoderOutput, VisionEncoder
from uniflow.metrics import image_digests, noise_for, psnr, ssim
from uniflow.pictures.drawing import captioned_sheet, error_map, heat_map, pca_basis, pca_image, save_picture
from uniflow.tokenizer import Tokenizer
from uniflow.tools.common import load_tokenizer

GAIN = 4  # of the differences shown
CHANNELS = 16  # of the latents shown
MARK = (0.0, 0.55, 1.0)  # colour of the frame around the chosen patch: none that a heat map has
SIDE, WIDE, TILE = 224, 926, 112  # pixels in the sheet: of an image, of four in a row, of a latent channel

Panel = tuple[str, Tensor]  # a caption and an image (3, H, W) in [0, 1]


@dataclass
class Look:
    """The images of one sheet.

    Attributes:
        panels: caption and image (3, H, W) in [0, 1], by a name that is fit for a file.
        rows: names of the panels in each row of the sheet, and what these are brought to, in pixels.
    """

    panels: dict[str, Panel] = field(default_factory=dict)
    rows: list[tuple[list[str], int]] = field(default_factory=list)

    def add_row(self, panels: dict[str, Panel], side: int = SIDE) -> None:
        """One more row of the sheet."""
        self.panels |= panels
        self.rows.append((list(panels), side))

    def sheet(self) -> Image.Image:
        """All panels with their captions."""
        return captioned_sheet([[self.panels[n] for n in names] for names, _ in self.rows], [s for _, s in self.rows])

    def save(self, folder: Path) -> None:
        """Write each panel as NAME.png, and the sheet as look.png."""
        for name, (_, picture) in self.panels.items():
            save_picture(picture, folder / f"{name}.png")
        self.sheet().save(folder / "look.png")


@dataclass
class PatchView:
    """What is shown of features.

    Attributes:
        size: height and width of the image in pixels, without padding.
        side: of a patch, in pixels.
        layers: numbers of layers, 1 = first.
        patch: row and column of the chosen patch.
    """

    size: tuple[int, int]
    side: int
    layers: list[int]
    patch: tuple[int, int]

    def pixels(self, patches: Tensor) -> Tensor:
        """An image (3, h, w) of patches as one of pixels (3, H, W)."""
        pixels = patches.repeat_interleave(self.side, dim=-2).repeat_interleave(self.side, dim=-1)
        return pixels[..., : self.size[0], : self.size[1]]

    def frame(self, picture: Tensor) -> Tensor:
        """The image (3, H, W) with a frame around the chosen patch, which stays as it is."""
        picture, line = picture.clone(), max(1, round(max(self.size) / 120))  # wide enough to be seen in the sheet
        top, left = (self.side * index for index in self.patch)
        edges = torch.zeros(self.size, dtype=torch.bool, device=picture.device)
        outer = (slice(max(0, start - line), start + self.side + line) for start in (top, left))
        edges[tuple(outer)] = True
        edges[top : top + self.side, left : left + self.side] = False
        picture[:, edges] = picture.new_tensor(MARK)[:, None]
        return picture


def look(
    tokenizer: str,
    image: Path,
    out: Path = Path("look"),
    layers: Sequence[int] | None = None,
    patch: tuple[int, int] | None = None,
    teacher: bool = False,
    steps: int | None = None,
    size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    fast_cpu: bool = True,
) -> None:
    """Show what a tokenizer makes of an image: features, similarity, latents, errors; one sheet, and each as a PNG.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or a hub id.
        image: the image file.
        out: folder for `look.png` and the single images.
        layers: numbers of the encoder's layers, 1 = first as in the logs, -1 = last; by default four, evenly spaced.
        patch: row and column of the patch that all others are compared with, 0 = first; by default the middle one.
        teacher: whether to also show the encoder that training started from; its weights are read or fetched from
            the source that the tokenizer's config names.
        steps: sampler steps of a flow decoder; by default the decoder's own number.
        size: short side in pixels to which the image is resized first; by default the size that the encoder was
            pretrained at; 0 keeps the image's own.
        device: where to compute; auto takes a GPU if there is one.
        fast_cpu: on a CPU, whether to use oneDNN where it is faster (AMD processors with AVX-512).

    Raises:
        ValueError: if the image cannot be read, there is no such layer or patch, or no teacher's weights.
    """
    model, picked = load_tokenizer(tokenizer, device, fast_cpu)
    side = model.encoder.spec.image_size if size is None else size
    pixels = read_image(image)
    if side:
        pixels = resize_short_side(pixels, side, str(image))
    original = first_encoder(model) if teacher else None
    result = look_at(model, pixels.to(picked), layers, patch, original, steps)
    result.save(out)
    print(f"{result.panels['reconstruction'][0]} -> {out / 'look.png'}".replace("\n", ": "))


@torch.inference_mode()
def look_at(
    tokenizer: Tokenizer,
    image: Tensor,
    layers: Sequence[int] | None = None,
    patch: tuple[int, int] | None = None,
    teacher: VisionEncoder | None = None,
    steps: int | None = None,
) -> Look:
    """The panels of `look` for one image.

    The features' colours are their three principal directions over this image's patches, the teacher's directions if
    there is one. Similarity is the cosine between the features of each patch and those of the chosen one.

    Args:
        tokenizer: on the image's device.
        image: (3, H, W), uint8 or float in [0, 1], of any size.
        layers: numbers of layers, 1 = first, -1 = last; four by default.
        patch: row and column of the encoder's grid; the middle by default.
        teacher: an encoder with as many layers, to compare with.
        steps: sampler steps; None is the decoder's own number.

    Raises:
        ValueError: if there is no such layer or patch.
    """
    layers = layer_numbers(tokenizer.encoder.spec.num_layers, layers)
    padded = tokenizer.pad(image[None])
    student = tokenizer.encoder(padded)
    rows, columns = student.grid
    row, column = patch = patch or (rows // 2, columns // 2)
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"there is no patch ({row}, {column}): this image has {rows} rows and {columns} columns")
    view = PatchView((image.shape[-2], image.shape[-1]), tokenizer.encoder.spec.patch_size, layers, patch)
    latents, _ = tokenizer.bottleneck(student)
    result = Look()
    result.add_row(_reconstruction(tokenizer, image, latents, steps, view))
    reference = student
    if teacher is not None:
        reference = teacher(padded)
        result.add_row(_colours(reference, reference, view, "teacher"))
        result.add_row(_similarities(reference, view, "teacher"))
    whose = "" if teacher is None else "student"
    result.add_row(_colours(student, reference, view, whose))
    result.add_row(_similarities(student, view, whose))
    result.add_row(_channels(latents[0]), WIDE)
    return result


def layer_numbers(depth: int, layers: Sequence[int] | None = None) -> list[int]:
    """Numbers of layers from 1 to `depth`; negative ones count from the end, None is four evenly spaced ones.

    Raises:
        ValueError: if there is no such layer.
    """
    if layers is None:
        return sorted({max(1, round(depth * quarter / 4)) for quarter in range(1, 5)})
    for layer in layers:
        if not 1 <= abs(layer) <= depth:
            raise ValueError(f"the encoder has layers 1 to {depth}, there is no layer {layer}")
    return [layer if layer > 0 else depth + 1 + layer for layer in layers]


def similarity_map(features: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cosine of each patch's features with those of the chosen one.

    Args:
        features: (D, h, w).
        patch: row and column of the chosen patch.

    Returns:
        (h, w) in [-1, 1], float32; 1 at the chosen patch.
    """
    tokens = F.normalize(features.float(), dim=0)
    chosen = tokens[:, patch[0], patch[1]]
    return (tokens * chosen[:, None, None]).sum(dim=0).clamp(-1, 1)


def strongest_channels(latents: Tensor, count: int = CHANNELS) -> tuple[Tensor, list[int]]:
    """The channels of latents (C, h, w) that vary most over the image, each brought to [0, 1].

    Returns:
        At most `count` maps (k, h, w), float32, strongest first, and their numbers, 0 = first. A constant channel is 0.
    """
    latents = latents.float()
    spread = latents.flatten(1).std(dim=1, correction=0)
    chosen = spread.argsort(descending=True, stable=True)[:count]
    maps = latents[chosen]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12), chosen.tolist()


def first_encoder(tokenizer: Tokenizer) -> VisionEncoder:
    """The encoder that the tokenizer's training started from, with the weights that its config names.

    Raises:
        ValueError: if the config names no weights.
    """
    if not names_weights(tokenizer):
        raise ValueError("no teacher: the tokenizer's config does not say where its encoder's weights came from")
    return build_part(part_config(tokenizer.encoder), VisionEncoder).eval().to(next(tokenizer.parameters()).device)


def names_weights(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's config says where its encoder's weights came from."""
    arguments = part_config(tokenizer.encoder)["init_args"]
    return not arguments.items() >= tokenizer.encoder.unloaded_arguments().items()


def _reconstruction(
    tokenizer: Tokenizer, image: Tensor, latents: Tensor, steps: int | None, view: PatchView
) -> dict[str, Panel]:
    height, width = view.size
    p = tokenizer.patch_size
    noise = noise_for(image_digests(image[None]), (3, latents.shape[-2] * p, latents.shape[-1] * p))
    decoded = tokenizer.decode(latents, steps=steps, noise=noise.to(latents.device)).float()[..., :height, :width]
    original = to_unit_range(image[None])
    quality = f"PSNR {psnr(decoded, original).item():.2f} dB"
    if min(height, width) >= 11:  # SSIM's window
        quality += f", SSIM {ssim(decoded, original).item():.3f}"
    number = "" if steps is None else f", {steps} step{'s' if steps > 1 else ''}"
    return {
        "original": (f"original, {width} x {height}\nframe: patch {view.patch}", view.frame(original[0])),
        "reconstruction": (f"reconstruction{number}\n{quality}", decoded[0]),
        "difference": (f"difference x {GAIN}", error_map(decoded, original, GAIN)[0]),
    }


def _colours(output: EncoderOutput, reference: EncoderOutput, view: PatchView, whose: str) -> dict[str, Panel]:
    panels = {}
    for layer in view.layers:
        features = output.feature_map(layer - 1)
        basis = pca_basis(reference.feature_map(layer - 1))
        picture = pca_image(features, basis, (features.shape[-2], features.shape[-1]))[0]
        panels[_name(whose, "pca", layer)] = (_caption(whose, layer, "principal colours"), view.pixels(picture))
    return panels


def _similarities(output: EncoderOutput, view: PatchView, whose: str) -> dict[str, Panel]:
    panels = {}
    for layer in view.layers:
        values = similarity_map(output.feature_map(layer - 1)[0], view.patch)
        low = values.min()
        picture = view.pixels(heat_map((values - low) / (1 - low).clamp_min(1e-6)))
        caption = _caption(whose, layer, f"cosine, {low:.2f} black, 1 white")
        panels[_name(whose, "similarity", layer)] = (caption, view.frame(picture))
    return panels


def _name(whose: str, kind: str, layer: int) -> str:
    return f"{'teacher_' if whose == 'teacher' else ''}{kind}_layer{layer:02d}"


def _caption(whose: str, layer: int, text: str) -> str:
    return f"{whose}{', ' if whose else ''}layer {layer}\n{text}"


def _channels(latents: Tensor) -> dict[str, Panel]:
    """The strongest channels of latents (C, h, w), eight in a row."""
    maps, channels = strongest_channels(latents)
    factor = max(1, round(TILE / max(maps.shape[-2:])))
    large = heat_map(maps).repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    caption = f"latent channels {', '.join(map(str, channels))}: those that vary most\nleast black, most white"
    return {"latents": (caption, make_grid(large, nrow=8, padding=2, pad_value=1.0))}
