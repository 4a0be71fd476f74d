"""Models that answer: multimodal ones of transformers, and assistants of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from uniflow.core.errors import one_line
from uniflow.core.files import check_folder
from uniflow.core.numbers import PositiveInt
from uniflow.core.tensors import refuse_nonfinite
from uniflow.language.assistant import Assistant
from uniflow.language.prompts import template_errors

DType = Literal["auto", "float32", "bfloat16", "float16"]


class TransformersModel:
    """A multimodal model of transformers with its processor: images and questions -> answers, by greedy decoding.

    Args:
        model: of transformers' own classes, with `generate`.
        processor: with a chat template.

    Raises:
        ValueError: if the processor has no chat template.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        if not getattr(processor, "chat_template", None) and not getattr(processor.tokenizer, "chat_template", None):
            raise ValueError(f"{type(processor).__name__} has no chat template: it cannot say how to ask the model")
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, name: str, device: str = "cpu", dtype: DType = "auto") -> Self:
        """Load a model and its processor: safetensors only, and no code that comes with the model.

        Args:
            name: hub id, or a folder.
            device: where it shall run.
            dtype: of its weights; "auto" is that of its file.

        Raises:
            ValueError: if it cannot be loaded.
            ImportError: if transformers is not installed.
        """
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ImportError("multimodal models need transformers: pip install uniflow[language]") from error
        check_folder(name)
        try:
            processor = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, use_safetensors=True)
        except Exception as error:  # transformers and the hub's client raise many types
            raise ValueError(f"cannot load the multimodal model {name!r}: {one_line(error, 300)}") from error
        refuse_nonfinite(dict(model.named_parameters()), name)
        return cls(model.to(device), processor)

    def __call__(self, images: list[Image.Image], prompts: list[str], max_new_tokens: PositiveInt) -> list[str]:
        return self.decode(self.generate(self.ask(images, prompts), max_new_tokens))

    def ask(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Any]:
        """What the model takes: for each question one turn of a user, the image in front of the text."""
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return self.chat(conversations)

    def chat(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
        """What the model takes for conversations in transformers' format, ready for its answers."""
        # Padded on the left: the answers begin where the prompts end.
        padding = {"padding": True, "padding_side": "left"} if len(conversations) > 1 else {}
        with template_errors():
            batch = self.processor.apply_chat_template(
                [list(conversation) for conversation in conversations],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=padding,
            )
        return dict(batch.to(self.model.device, self.model.dtype))

    @torch.inference_mode()
    def generate(self, batch: dict[str, Any], max_new_tokens: PositiveInt) -> Tensor:
        """The most likely token after the other: ids (B, T) of the answers, padded on the right.

        The token that stands for an image is left out: an answer is text.
        """
        image = getattr(self.model.config, "image_token_id", None)
        sequences = self.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad(),
            suppress_tokens=None if image is None else [image],
        )
        return sequences[:, batch["input_ids"].shape[1] :]

    @torch.inference_mode()
    def logits(self, batch: dict[str, Any], answers: Tensor) -> Tensor:
        """The logits (B, T, vocabulary), float32, from which each token of `answers` (B, T) is predicted."""
        ids, count = batch["input_ids"], answers.shape[1]
        longer = batch | {"input_ids": torch.cat([ids, answers], dim=1)}
        for key, value in batch.items():  # masks and kinds of tokens: answers are text that is attended to
            if key != "input_ids" and isinstance(value, Tensor) and value.shape == ids.shape:
                longer[key] = torch.cat(
                    [value, torch.full_like(answers, key == "attention_mask", dtype=value.dtype)], 1
                )
        return self.model(**longer, logits_to_keep=count + 1).logits[:, :-1].float()

    def counted(self, answers: Tensor) -> Tensor:
        """Which tokens (B, T) belong to the answers: up to and with the first that ends them."""
        ends = self.model.generation_config.eos_token_id
        stops = torch.isin(answers, torch.tensor([] if ends is None else ends, device=answers.device).to(answers.dtype))
        return stops.long().cumsum(dim=1) - stops.long() == 0

    def decode(self, answers: Tensor) -> list[str]:
        """The answers as texts."""
        return [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]

    def _pad(self) -> int:
        config, tokenizer = self.model.generation_config, self.processor.tokenizer
        candidates = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
        return next((token for token in candidates if token is not None), 0)


class AssistantModel:
    """An assistant that `uniflow fit` left, RUN/assistant: images and questions -> answers.

    Args:
        assistant: has `answer(image, question, max_new_tokens=...)`, the image uint8 (3, H, W).
    """

    def __init__(self, assistant: Any) -> None:
        self.assistant = assistant

    @classmethod
    def from_pretrained(cls, folder: str, device: str = "cpu") -> Self:
        """Load the folder; raises as `Assistant.from_pretrained`."""
        return cls(Assistant.from_pretrained(folder).to(device))

    def __call__(self, images: list[Image.Image], prompts: list[str], max_new_tokens: PositiveInt) -> list[str]:
        pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images]
        pairs = zip(pixels, prompts, strict=True)
        return [self.assistant.answer(image, prompt, max_new_tokens=max_new_tokens).strip() for image, prompt in pairs]
