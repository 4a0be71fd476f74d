"""What the demo page computes: plain functions of pictures and numbers, without a browser."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.pixels import to_uint8
from uniflow.core.text_models import require_transformers
from uniflow.data.images.reading import MAX_PIXELS, read_image
from uniflow.data.images.transforms import resize_short_side
from uniflow.data.scenes import ScenesDataset
from uniflow.encoders.base import VisionEncoder
from uniflow.generators import Generator
from uniflow.language import Assistant
from uniflow.pictures.drawing import error_map, heat_map, pca_basis, pca_image
from uniflow.tokenizer import Tokenizer
from uniflow.tools.look import GAIN, PatchView, similarity_map
from uniflow.tools.reconstruct import quality, reconstruct_image

MOST_COMPUTED = 2**20  # pixels of a picture that is computed with: a larger one is made smaller
MOST_ELONGATED = 16  # times as long as wide
MOST_STEPS = 100
MOST_IMAGES = 16
MOST_GUIDANCE = 20.0
MOST_SEED = 2**31 - 1
MOST_CHARACTERS = 500  # of a question or a prompt
MOST_TOKENS = 128  # of an answer
MOST_TURNS = 8  # earlier questions that an answer follows up on


@dataclass(frozen=True)
class Limits:
    """What may be uploaded.

    Attributes:
        max_bytes: of a file.
        max_pixels: of a picture, as its header says.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"--max_pixels must be at most {MAX_PIXELS:,}, got {self.max_pixels:,}")


@dataclass
class Parts:
    """What the page shows.

    Attributes:
        tokenizer: whose pictures and features are shown.
        name: of the tokenizer, as it was given.
        teacher: the encoder that its training started from.
        generator: makes pictures.
        class_names: of the generator's classes; their numbers if empty.
        assistant: answers questions.
    """

    tokenizer: Tokenizer
    name: str
    teacher: VisionEncoder | None = None
    generator: Generator | None = None
    class_names: Sequence[str] = ()
    assistant: Assistant | None = None

    def __post_init__(self) -> None:
        known = None if self.generator is None else number_of_classes(self.generator)
        if self.class_names and known != len(self.class_names):
            told = "there is no generator with classes" if known is None else f"the generator has {known} classes"
            raise ValueError(f"--class_names has {len(self.class_names)} names, but {told}")


@dataclass(frozen=True)
class Reconstruction:
    """A picture and what became of it, each (3, H, W) uint8 on the CPU; how good it is and how large, in words."""

    original: Tensor
    result: Tensor
    error: Tensor
    quality: str
    text: str


@dataclass(frozen=True)
class FeatureMaps:
    """Features of one picture.

    Attributes:
        picture: uint8 (3, H, W), on the CPU.
        maps: by what they are of, feature maps (D, h, w), float32 on the CPU.
        sides: by the same names, side in pixels of what one feature stands for.
    """

    picture: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    sides: dict[str, int] = field(default_factory=dict)

    def view(self, name: str, x: float = 0, y: float = 0) -> PatchView:
        """How the map `name` lies on the picture, with the patch at the pixel (x, y)."""
        rows, columns = self.maps[name].shape[-2:]
        side = self.sides[name]
        patch = (min(max(int(y) // side, 0), rows - 1), min(max(int(x) // side, 0), columns - 1))
        return PatchView((self.picture.shape[-2], self.picture.shape[-1]), side, [], patch)


def read_picture(path: str | None, limits: Limits) -> Tensor:
    """An uploaded picture, uint8 (3, H, W).

    Raises:
        ValueError: in one line, if there is none, it cannot be read, or is beyond the limits.
    """
    if path is None:
        raise ValueError("Choose a picture first.")
    image = read_image(path, Path(path).name, max_pixels=limits.max_pixels, max_bytes=limits.max_bytes)
    height, width = image.shape[-2:]
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(
            f"This picture has {width} x {height} pixels: one side may be at most {MOST_ELONGATED} times the other."
        )
    return image


def fit_picture(image: Tensor, side: int, most: int = MOST_COMPUTED) -> Tensor:
    """The picture (3, H, W) as it is computed with.

    Args:
        image: uint8.
        side: of the short side in pixels; 0 keeps the picture's own.
        most: pixels; a larger picture is made smaller.
    """
    height, width = image.shape[-2:]
    own = min(height, width)
    wanted = min(side or own, max(1, int(own * math.sqrt(most / (height * width)))))
    return image if wanted == own else resize_short_side(image, wanted)


def checked(name: str, value: float | None, least: float, most: float) -> int:
    """A whole number of the page's.

    Raises:
        ValueError: if it is out of range or none.
    """
    if value is None or not least <= value <= most or value != int(value):
        raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}.")
    return int(value)


def reconstruct_picture(
    tokenizer: Tokenizer, image: Tensor, steps: float | None, seed: float, own_size: bool
) -> Reconstruction:
    """Encode and decode a picture.

    Args:
        tokenizer: to look at.
        image: uint8 (3, H, W).
        steps: of the sampler; None is the decoder's own number.
        seed: of the decoder's noise.
        own_size: keep the picture's size as far as `MOST_COMPUTED` allows, and decode by tiles of the size that the
            encoder was pretrained at; else its short side is brought to that size.

    Raises:
        ValueError: if a number is out of range.
    """
    trained = tokenizer.encoder.spec.image_size
    number = None if steps is None else checked("Steps", steps, 1, MOST_STEPS)
    fitted = fit_picture(image, 0 if own_size else trained).to(next(tokenizer.parameters()).device)
    options: dict[str, Any] = {"steps": number}
    if own_size and max(fitted.shape[-2:]) > trained:
        options["tile"] = max(1, trained // tokenizer.patch_size)
    begin = perf_counter()
    original, result = reconstruct_image(tokenizer, fitted, checked("The seed", seed, 0, MOST_SEED), **options)
    seconds = perf_counter() - begin
    score, similarity = quality(original, result)
    told = f"PSNR {score:.2f} dB" + ("" if math.isnan(similarity) else f", SSIM {similarity:.3f}")
    size = f"{size_in_words(tokenizer, fitted.shape[-2], fitted.shape[-1])}. {seconds:.1f} s."
    shown, decoded, error = (to_uint8(p[0]).cpu() for p in (original, result, error_map(result, original, GAIN)))
    return Reconstruction(shown, decoded, error, told, size)


def size_in_words(tokenizer: Tokenizer, height: int, width: int) -> str:
    """How large the latents of a picture are."""
    p, channels = tokenizer.patch_size, tokenizer.latent_channels
    rows, columns = -(-height // p), -(-width // p)
    picture = f"Picture {width} x {height}"
    if tokenizer.codebook_size is not None:
        return f"{picture}, latents {columns} x {rows} places with codes of 1 to {tokenizer.codebook_size:,}"
    numbers, values = rows * columns * channels, 3 * height * width
    share = f"{values / numbers:.1f} times fewer" if numbers < values else f"{numbers / values:.1f} times as many"
    return f"{picture}, latents {columns} x {rows} x {channels}: {numbers:,} numbers, {share} than the picture has"


@torch.inference_mode()
def extract_features(
    tokenizer: Tokenizer, image: Tensor, layer: float, teacher: VisionEncoder | None = None
) -> FeatureMaps:
    """Features of a picture: of the tokenizer's encoder ("student"), of its latents, and of the teacher.

    Args:
        tokenizer: to look at.
        image: uint8 (3, H, W); its short side is brought to the size that the encoder was pretrained at.
        layer: number of the encoder's layer, 1 = first.
        teacher: an encoder with as many layers.

    Raises:
        ValueError: if there is no such layer.
    """
    index = checked("The layer", layer, 1, tokenizer.encoder.spec.num_layers) - 1
    fitted = fit_picture(image, tokenizer.encoder.spec.image_size)
    padded = tokenizer.pad(fitted[None].to(next(tokenizer.parameters()).device))
    output = tokenizer.encoder(padded)
    found = {"student": output.feature_map(index), "latents": tokenizer.bottleneck(output)[0]}
    sides = {"student": tokenizer.encoder.spec.patch_size, "latents": tokenizer.patch_size}
    if teacher is not None:
        found["teacher"], sides["teacher"] = teacher(padded).feature_map(index), teacher.spec.patch_size
    return FeatureMaps(fitted.cpu(), {name: value[0].float().cpu() for name, value in found.items()}, sides)


def feature_colours(features: FeatureMaps) -> dict[str, Tensor]:
    """Each map's three principal directions as colours, uint8 (3, H, W); those of the student are the teacher's."""
    pictures = {}
    for name, features_of in features.maps.items():
        reference = features.maps.get("teacher", features_of) if name == "student" else features_of
        # A bottleneck may have fewer channels than there are colours.
        both = [F.pad(one, (0, 0, 0, 0, 0, max(0, 3 - len(one))))[None] for one in (reference, features_of)]
        colours = pca_image(both[1], pca_basis(both[0]), (features_of.shape[-2], features_of.shape[-1]))[0]
        pictures[name] = to_uint8(features.view(name).pixels(colours))
    return pictures


def feature_similarities(features: FeatureMaps, x: float, y: float) -> tuple[Tensor, dict[str, Tensor], str]:
    """Cosine of each patch's features with those of the patch at the pixel (x, y).

    Returns:
        The picture with a frame around the student's patch; by name a heat map, white at the patch and black where the
        cosine is least; all uint8 (3, H, W). And what they say, in words.
    """
    pictures, least = {}, []
    for name, features_of in features.maps.items():
        view = features.view(name, x, y)
        values = similarity_map(features_of, view.patch)
        low = float(values.min())
        heat = view.pixels(heat_map((values - low) / max(1 - low, 1e-6)))
        pictures[name] = to_uint8(view.frame(heat))
        least.append(f"{name} {low:.2f}")
    view = features.view("student", x, y)
    framed = to_uint8(view.frame(features.picture / 255))
    row, column = view.patch
    told = (
        "Colours: the three main directions of the features.\nCosine: of each patch with that in "
        f"row {row + 1}, column {column + 1}; 1 is white, the least is black: {', '.join(least)}."
    )
    return framed, pictures, told


def number_of_classes(generator: Generator) -> int | None:
    """How many classes the generator knows; None if its condition is another one."""
    return getattr(generator.condition, "num_classes", None) if generator.condition.field == "label" else None


def generate_pictures(
    generator: Generator, words: Sequence[str], count: float, steps: float | None, guidance: float, seed: float
) -> list[Tensor]:
    """Make pictures.

    Args:
        generator: a trained one.
        words: what the pictures show, one after the other: numbers of classes, or texts; nothing leaves it open.
        count: how many pictures.
        steps: of the sampler; None is the generator's own number, or as many as it needs.
        guidance: 1 is none.
        seed: of the noise.

    Returns:
        Images, each uint8 (3, H, W).

    Raises:
        ValueError: if a number is out of range, or a word is not one that the condition knows.
    """
    total = checked("The number of pictures", count, 1, MOST_IMAGES)
    if not 0 <= guidance <= MOST_GUIDANCE:
        raise ValueError(f"Guidance must lie between 0 and {MOST_GUIDANCE:g}.")
    if any(len(word) > MOST_CHARACTERS for word in words):
        raise ValueError(f"A prompt has at most {MOST_CHARACTERS} characters.")
    values = generator.condition.parse([words[i % len(words)] for i in range(total)]) if words else None
    number = checked("The seed", seed, 0, MOST_SEED)
    passes = None if steps is None else checked("Steps", steps, 1, MOST_STEPS)
    images = generator.sample(values, total, seed=number, steps=passes, guidance=float(guidance), batch_size=4)
    return list(to_uint8(images))


def stream_answer(
    assistant: Assistant, image: Tensor | None, question: str, history: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """The answer to a question about a picture (3, H, W), uint8, as far as it has come.

    Raises:
        ValueError: if the question is empty or too long, or the assistant refuses it.
    """
    question = question.strip()
    if not 0 < len(question) <= MOST_CHARACTERS:
        raise ValueError(f"Ask a question of 1 to {MOST_CHARACTERS} characters.")
    streamer = require_transformers().TextIteratorStreamer(assistant.answerer.tokenizer, skip_special_tokens=True)
    errors: list[Exception] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                assistant.answer(image, question, history[-MOST_TURNS:], MOST_TOKENS, streamer)
        except Exception as error:  # raised again by the reader below
            errors.append(error)
        finally:
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    said = ""
    try:
        for piece in streamer:
            said += piece
            yield said.strip()
    finally:
        thread.join()  # a reader that left early shall not leave a second answer to be made beside the next
    if errors:
        raise errors[0]


def example_pictures(count: int = 3, size: int = 224) -> list[Tensor]:
    """Scenes to try the page with, uint8 (3, size, size)."""
    dataset = ScenesDataset(0, count, size, stream=1)
    return [dataset[number]["image"] for number in range(count)]
