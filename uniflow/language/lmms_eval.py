"""A model for lmms-eval (0.7 or newer): assistants of this package, and students put back into multimodal models.

lmms-eval finds it by the entry point `uniflow` of the group `lmms_eval.models`; nothing else imports this file.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from uniflow.core.numbers import PositiveInt
from uniflow.language.benchmarks.models import AssistantModel, DType, TransformersModel
from uniflow.language.put_back import check_normalization, put_back
from uniflow.tokenizer import Tokenizer

try:
    _BASE: Any = importlib.import_module("lmms_eval.api.model").lmms
except ImportError:  # tools that read all modules pass; the constructor says what is missing
    _BASE = None

MODEL_ID = "uniflow"


def manifest() -> Any:
    """What lmms-eval registers: `lmms-eval --model uniflow`."""
    registry = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=MODEL_ID, chat_class_path=f"{__name__}.{UniflowChat.__name__}")


class UniflowChat(_BASE or object):  # type: ignore[misc]
    """Answers by greedy decoding, in one process.

    Args:
        pretrained: folder of an assistant, RUN/assistant.
        model: instead, a multimodal model of transformers: hub id or folder.
        tokenizer: with `model`, a tokenizer whose encoder takes the place of the model's vision tower.
        device: where to compute.
        batch_size: questions at a time.
        dtype: of a transformers model's weights; "auto" is that of its file.
        max_batch_size: what lmms-eval passes to all models; not used.

    Raises:
        ValueError: if not exactly one of pretrained and model is given, or one of several processes is this.
        ImportError: if lmms-eval is not installed.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        model: str | None = None,
        tokenizer: str | None = None,
        device: str | None = "cpu",
        batch_size: PositiveInt | str = 1,
        dtype: DType = "auto",
        max_batch_size: PositiveInt | None = None,
    ) -> None:
        if _BASE is None:
            raise ImportError("this class is a model of lmms-eval: pip install uniflow[lmms-eval]")
        super().__init__()
        if (pretrained is None) == (model is None) or (tokenizer is not None and model is None):
            raise ValueError("--model_args: give pretrained=RUN/assistant, or model=NAME and perhaps tokenizer=FOLDER")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("uniflow's model for lmms-eval runs in one process: start it without a launcher")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"--batch_size must be a number of questions, 1 or more, not {batch_size}")
        self.batch_size = int(batch_size)
        self.answerer: AssistantModel | TransformersModel
        if model is None:
            self.answerer = AssistantModel.from_pretrained(str(pretrained), device or "cpu")
            return
        self.answerer = TransformersModel.from_pretrained(model, device or "cpu", dtype)
        if tokenizer is not None:
            encoder = Tokenizer.from_pretrained(tokenizer).encoder
            check_normalization(self.answerer.processor, encoder.spec)
            put_back(self.answerer.model, encoder)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answers to requests of lmms-eval, in their order."""
        answers: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            for group in _of_one_kind(requests[start : start + self.batch_size]):
                answers += self._answer([_messages(self, request) for request in group], group[0].args[2])
        return answers

    def _answer(self, conversations: list[list[dict[str, Any]]], settings: dict[str, Any]) -> list[str]:
        if settings.get("do_sample") or settings.get("temperature") or settings.get("num_beams", 1) != 1:
            raise ValueError(f"uniflow's model decodes greedily; this task wants {settings}")
        count = int(settings.get("max_new_tokens", 1024))
        if isinstance(self.answerer, TransformersModel):
            tokens = self.answerer.generate(self.answerer.chat(conversations), count)
            texts = self.answerer.decode(tokens)
        else:
            images, questions = zip(*map(_one_turn, conversations), strict=True)
            texts = self.answerer(list(images), list(questions), count)
        ends = settings.get("until") or []
        return [_cut(text, [ends] if isinstance(ends, str) else ends) for text in texts]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("uniflow's model for lmms-eval answers questions (generate_until) only")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("uniflow's model for lmms-eval answers one question at a time (generate_until) only")


def _of_one_kind(requests: list[Any]) -> list[list[Any]]:
    """Runs of requests with the same settings of generation."""
    groups: list[list[Any]] = []
    for request in requests:
        if groups and groups[-1][0].args[2] == request.args[2]:
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups


def _messages(model: Any, request: Any) -> list[dict[str, Any]]:
    """A request's conversation in transformers' format."""
    protocol = importlib.import_module("lmms_eval.protocol")
    _, to_messages, _, document, task, split = request.args
    messages = to_messages(model.task_dict[task][split][document])
    return protocol.ChatMessages(messages=messages).to_hf_messages()


def _one_turn(conversation: list[dict[str, Any]]) -> tuple[Any, str]:
    """The one image and the text of a conversation of one turn.

    Raises:
        ValueError: if it is another kind of conversation, which an assistant is not trained for.
    """
    parts = [part for message in conversation for part in message["content"]]
    kinds = [part["type"] for part in parts]
    if len(conversation) != 1 or kinds.count("image") != 1 or set(kinds) != {"image", "text"}:
        given = f"{len(conversation)} turns of {', '.join(kinds)}"
        raise ValueError(f"an assistant answers one question about one image, this one has {given}")
    image = next(part["image"] for part in parts if part["type"] == "image")
    return image, "\n".join(part["text"] for part in parts if part["type"] == "text")


def _cut(text: str, ends: list[str]) -> str:
    for end in ends:
        text = text.partition(end)[0]
    return text.strip()
