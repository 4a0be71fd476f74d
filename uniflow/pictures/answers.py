"""Images beside questions about them, as pictures of equal size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from uniflow.pictures.drawing import fit_side

RIGHT, WRONG, GREY = "#147a2e", "#b3261e", "#444444"


def answer_cards(images: Tensor, lines: Sequence[Sequence[tuple[str, str, str]]], side: int = 192) -> Tensor:
    """Draw one card for each image: the image on top, under it each question with its answer.

    Args:
        images: (n, 3, H, W) in [0, 1].
        lines: for each image (question, answer, true answer if the answer is wrong, else "").
        side: of the shown image in pixels; a card is twice as wide.

    Returns:
        (n, 3, h, w) in [0, 1], all of the height that the longest card needs; right answers are green, wrong ones red
        with the true one beside them.
    """
    font, height, width = ImageFont.load_default(13), 18, 2 * side
    tall = side + 8 + 2 * height * max([len(card) for card in lines] or [0])
    cards = []
    for image, card in zip(images, lines, strict=True):
        picture = Image.new("RGB", (width, tall), "white")
        shown = fit_side(image, side)
        picture.paste(shown, ((width - shown.width) // 2, 0))
        draw = ImageDraw.Draw(picture)
        for number, (question, answer, truth) in enumerate(card):
            top = side + 4 + 2 * height * number
            draw.text((6, top), question, fill=GREY, font=font)
            said = f"{answer or '(nothing)'}   (true: {truth})" if truth else answer
            draw.text((18, top + height), said, fill=WRONG if truth else RIGHT, font=font)
        cards.append(pil_to_tensor(picture).float() / 255)
    return torch.stack(cards)
