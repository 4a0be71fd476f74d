"""Ask an assistant about an image, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from uniflow.core.numbers import PositiveInt
from uniflow.core.text_models import require_transformers
from uniflow.data.images.reading import read_image
from uniflow.language import Assistant
from uniflow.tools.common import pick_device


def chat(
    *questions: str,
    assistant: Path | None = None,
    image: Path | None = None,
    tokenizer: str | None = None,
    lm: str | None = None,
    gguf_file: str | None = None,
    max_new_tokens: PositiveInt = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Answer questions about an image, word by word as the answer comes; later questions follow up on earlier ones.

    Args:
        questions: one or more, asked one after the other.
        assistant: RUN/assistant of a fit of `VisualQuestionTask`.
        image: an image file; without one the questions are answered from their text.
        tokenizer: look with the encoder of this tokenizer (a folder, a checkpoint, `embedded` or a name on the hub)
            instead of the assistant's own, whose projector has to fit it.
        lm: where the language model is, if it is not where it was at training: a name on the hub or a folder.
        gguf_file: with lm, name of the GGUF file in it.
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
    pixels = None if image is None else read_image(image)
    model = Assistant.from_pretrained(assistant, lm, gguf_file, tokenizer).to(pick_device(device))
    streamer = require_transformers().TextStreamer(model.answerer.tokenizer, skip_special_tokens=True)
    history: list[tuple[str, str]] = []
    with torch.inference_mode():
        for question in questions:
            if len(questions) > 1:
                print(f"> {question}")
            history.append((question, model.answer(pixels, question, history, max_new_tokens, streamer)))
