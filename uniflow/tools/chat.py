"""Ask an assistant about an image, in the terminal; with a generator it draws the image first."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from uniflow.core.numbers import NonNegativeInt, PositiveInt
from uniflow.core.pixels import to_uint8
from uniflow.core.text_models import require_transformers
from uniflow.data.images.reading import read_image
from uniflow.generators import Generator
from uniflow.language import Assistant
from uniflow.tools.common import pick_device
from uniflow.tools.prompt_sets import write_png


def chat(
    *questions: str,
    assistant: Path | None = None,
    image: Path | None = None,
    tokenizer: str | None = None,
    lm: str | None = None,
    gguf_file: str | None = None,
    generator: Path | None = None,
    draw: Path | None = None,
    seed: NonNegativeInt = 0,
    max_new_tokens: PositiveInt = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Answer questions about an image, word by word as the answer comes; later questions follow up on earlier ones.

    With --draw the first of the words is drawn, and the others are questions about that drawing. The language model's
    states are what the generator is told: one language model draws and answers if it was trained with the assistant's.

    Args:
        questions: one or more, asked one after the other.
        assistant: RUN/assistant of a fit of `VisualQuestionTask`.
        image: an image file; without one the questions are answered from their text.
        tokenizer: look with the encoder of this tokenizer (a folder, a checkpoint, `embedded` or a name on the hub)
            instead of the assistant's own, whose projector has to fit it.
        lm: where the language model is, if it is not where it was at training: a name on the hub or a folder.
        gguf_file: with lm, name of the GGUF file in it.
        generator: RUN/generator of a fit of `GenerationTask` with `TextCondition`, which draws.
        draw: the PNG file that the drawing becomes.
        seed: of the drawing's noise.
        max_new_tokens: most tokens of an answer.
        device: where to compute; auto takes a GPU if there is one.

    Raises:
        ValueError: if no assistant is given, or something cannot be read.
    """
    if assistant is None:
        raise ValueError(
            "chat needs --assistant RUN/assistant: between a tokenizer and a language model stands a projector, which "
            "has to be trained: uniflow fit -c configs/recipes/llava_stage1.yaml --model.source.tokenizer DIR "
            "--model.lm.name NAME"
        )
    if gguf_file and not lm:
        raise ValueError("--gguf_file names a file of --lm, which is missing")
    if (draw is None) != (generator is None):
        raise ValueError("--draw FILE.png and --generator RUN/generator go together: what is drawn, and what draws it")
    if draw is not None:
        _check_drawing(draw, image)
    pixels = None if image is None else read_image(image)
    model = Assistant.from_pretrained(assistant, lm, gguf_file, tokenizer).to(pick_device(device))
    if draw is not None and generator is not None:
        pixels, questions = _drawn(model, generator, questions[0], seed, draw), questions[1:]
    streamer = require_transformers().TextStreamer(model.answerer.tokenizer, skip_special_tokens=True)
    history: list[tuple[str, str]] = []
    with torch.inference_mode():
        for question in questions:
            if len(questions) > 1:
                print(f"> {question}")
            history.append((question, model.answer(pixels, question, history, max_new_tokens, streamer)))


def _check_drawing(draw: Path, image: Path | None) -> None:
    """Refuse what cannot become a drawing.

    Raises:
        ValueError: saying what.
    """
    if image is not None:
        raise ValueError("give --image or --draw, not both: questions are about one image")
    if draw.suffix.lower() != ".png":
        raise ValueError(f"--draw must end in .png, got {draw}")


def _drawn(assistant: Assistant, folder: Path, words: str, seed: int, file: Path) -> Tensor:
    """The image that a generator makes of words, uint8 (3, H, W), which it writes to a file, too."""
    generator = Generator.from_pretrained(folder).to(assistant.device)
    if generator.condition.field != "caption":
        raise ValueError(
            f"--generator {folder} was not trained with texts (TextCondition): it cannot draw what words say"
        )
    shared = generator.condition.share(assistant.answerer.lm, assistant.answerer.tokenizer)
    image = to_uint8(generator.sample([words], seed=seed)[0])
    write_png(image, file)
    print(
        f"{file}: {words}" + ("" if shared else " (the generator's text encoder is another model than the assistant's)")
    )
    return image
