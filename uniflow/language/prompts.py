"""Conversations as tokens: which template, where the image stands, and which tokens are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from uniflow.core.errors import one_line
from uniflow.core.numbers import CheckedNumbers, PositiveInt

IMAGE = "<image>"  # where the image stands in a text, as in LLaVA's files
IMAGE_ID = -1  # stands for the image among the ids of tokens


class Turn(NamedTuple):
    """A question, and its answer; "" where it is still to be given."""

    question: str
    answer: str = ""


class PromptError(ValueError):
    """A conversation that cannot be trained on or asked; the message says which and why."""


@dataclass(frozen=True)
class Prompt:
    """One conversation as tokens.

    Attributes:
        ids: of the tokens; `IMAGE_ID` once where the image stands, if there is one.
        trained: for each token, whether the language model is trained to say it.
        cut: whether text was left out to fit.
    """

    ids: list[int]
    trained: list[bool]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class Template(ABC, CheckedNumbers):
    """How a conversation is written down.

    Attributes:
        adds_bos: whether the text lacks the BOS token that the tokenizer puts in front of plain text.
    """

    adds_bos: bool

    @abstractmethod
    def render(self, turns: Sequence[Turn], tokenizer: Any, ask: bool) -> str:
        """The text of the turns; with `ask` it ends where the answer to the last question begins."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""


@contextmanager
def template_errors() -> Iterator[None]:
    """Turn the errors of a chat template, in its syntax or while it is filled in, into `PromptError`."""
    from jinja2 import TemplateError

    try:
        yield
    except TemplateError as error:
        raise PromptError(f"the model's chat template cannot be used: {one_line(error, 200)}") from error


class ChatTemplate(Template):
    """The template that comes with the language model's tokenizer.

    Args:
        system: system message; null is the template's own, if it has one. Where a template takes no system message, it
            is put in front of the first question.
    """

    adds_bos = False

    def __init__(self, system: str | None = None) -> None:
        self.system = system

    def settings(self) -> dict[str, Any]:
        return {"system": self.system}

    def render(self, turns: Sequence[Turn], tokenizer: Any, ask: bool) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise PromptError("this language model's tokenizer has no chat template: set template to TextTemplate")
        messages = []
        for number, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn.question})
            if not (ask and number == len(turns) - 1):
                messages.append({"role": "assistant", "content": turn.answer})
        return self._with_system(messages, tokenizer, ask)

    def _with_system(self, messages: list[dict[str, str]], tokenizer: Any, ask: bool) -> str:
        def render(written: list[dict[str, str]]) -> str:
            with template_errors():
                return tokenizer.apply_chat_template(written, tokenize=False, add_generation_prompt=ask)

        if self.system is None:
            return render(messages)
        try:
            text = render([{"role": "system", "content": self.system}, *messages])
        except PromptError:  # of a role that the template does not know
            text = ""
        if self.system in text:
            return text
        first = {"role": "user", "content": f"{self.system}\n\n{messages[0]['content']}"}
        return render([first, *messages[1:]])


class TextTemplate(Template):
    """A template of plain text: `system`, then for each turn `question` and `answer`, in which {} is the text.

    The defaults are those of LLaVA-1.5 (Vicuna); {eos} is the tokenizer's end token. LLaVA's first stage leaves the
    instruction out: `question: ""`, `answer: "{}\\n"`.

    Args:
        system: text in front.
        question: how a question is written; without {} the question is left out, and its image stays.
        answer: how an answer is written; what of it stands before {} is not trained.

    Raises:
        ValueError: if the answer lacks {}, or one of the two has it twice.
    """

    adds_bos = True

    def __init__(
        self,
        system: str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. ",
        question: str = "USER: {} ASSISTANT:",
        answer: str = " {}{eos}",
    ) -> None:
        for name, text, least in (("question", question, 0), ("answer", answer, 1)):
            if not least <= text.count("{}") <= 1:
                raise ValueError(f"TextTemplate.{name} must hold {{}} once, where the text goes, not {text!r}")
        self.system, self.question, self.answer = system, question, answer

    def settings(self) -> dict[str, Any]:
        return {"system": self.system, "question": self.question, "answer": self.answer}

    def render(self, turns: Sequence[Turn], tokenizer: Any, ask: bool) -> str:
        before, _, after = self.answer.replace("{eos}", tokenizer.eos_token or "").partition("{}")
        text = self.system
        for number, turn in enumerate(turns):
            image = IMAGE if IMAGE in turn.question and "{}" not in self.question else ""
            text += image + self.question.replace("{}", turn.question)
            # A space in front of an answer is part of its first word: of a question it would be a token of its own.
            last = ask and number == len(turns) - 1
            text += before.rstrip(" ") if last else f"{before}{turn.answer}{after}"
        return text


class Prompts(CheckedNumbers):
    """Makes tokens of conversations.

    Which tokens are trained is found by comparing prefixes: the conversation is tokenised whole, and up to before and
    after each answer; the tokens between are the answer's. So it works for every template. A token that reaches over
    the boundary into an answer is trained with it. There are never two BOS tokens in front.

    Args:
        tokenizer: of transformers.
        template: how conversations are written.
        max_tokens: most tokens of text while training. Longer conversations lose their last turns, and a single turn
            the end of its answer.
    """

    def __init__(self, tokenizer: Any, template: Template, max_tokens: PositiveInt = 2048) -> None:
        self.tokenizer, self.template, self.max_tokens = tokenizer, template, max_tokens
        bos = tokenizer.bos_token_id
        plain = tokenizer("a").input_ids
        self._bos = bos if template.adds_bos and bos is not None and plain[:1] == [bos] else None

    def training(self, turns: Sequence[Turn], name: str = "a conversation") -> Prompt:
        """A conversation to train on.

        Args:
            turns: at least one, with answers.
            name: of the sample, for errors.

        Raises:
            PromptError: if the image is named twice or would be cut off, no answer is left after cutting, or the
                template writes answers differently when turns follow.
        """
        kept = list(turns)
        prompt = self._marked(kept, name)
        while len(prompt) > self.max_tokens and len(kept) > 1:
            kept.pop()
            prompt = self._marked(kept, name)
        ids, trained = prompt.ids[: self.max_tokens], prompt.trained[: self.max_tokens]
        if IMAGE_ID in prompt.ids and IMAGE_ID not in ids:
            raise PromptError(f"{name}: its image stands after the {self.max_tokens} tokens that are kept (max_tokens)")
        if any(prompt.trained) and not any(trained):
            raise PromptError(
                f"{name}: the question alone has {prompt.trained.index(True)} tokens, and max_tokens is "
                f"{self.max_tokens}: nothing of the answer is left"
            )
        return Prompt(ids, trained, cut=len(kept) < len(turns) or len(ids) < len(prompt))

    def asking(self, turns: Sequence[Turn], name: str = "a question") -> Prompt:
        """A conversation whose last question is to be answered; nothing is cut."""
        ids = self._ids(self.template.render(turns, self.tokenizer, ask=True), name)
        return Prompt(ids, [False] * len(ids))

    def decoded(self, prompt: Prompt) -> str:
        """The text with the trained parts in [[ ]], to look at."""
        text, inside = "", False
        for run, trained in _runs(prompt):
            text += "[[" if trained and not inside else "]]" if inside and not trained else ""
            inside = trained
            text += IMAGE if run == [IMAGE_ID] else self.tokenizer.decode(run)
        return text + ("]]" if inside else "")

    def _marked(self, turns: Sequence[Turn], name: str) -> Prompt:
        ids = self._ids(self.template.render(turns, self.tokenizer, ask=False), name)
        trained = [False] * len(ids)
        for number, turn in enumerate(turns):
            if not turn.answer:
                continue
            head = turns[: number + 1]
            start = _common(ids, self._ids(self.template.render(head, self.tokenizer, ask=True), name))
            end = _common(ids, self._ids(self.template.render(head, self.tokenizer, ask=False), name))
            if end <= start:
                raise PromptError(
                    f"{name}: the tokens of answer {number + 1} cannot be found: this template writes an answer "
                    "differently when turns follow; use conversations of one turn, or TextTemplate"
                )
            stops = [at for at in range(start, end) if ids[at] == self.tokenizer.eos_token_id]
            end = stops[-1] + 1 if stops else end  # what a template puts after the end token is not the answer's
            trained[start:end] = [True] * (end - start)
        return Prompt(ids, trained)

    def _ids(self, text: str, name: str) -> list[int]:
        pieces = text.split(IMAGE)
        if len(pieces) > 2:
            raise PromptError(f"{name}: {IMAGE} stands {len(pieces) - 1} times in it, and a sample has one image")
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            ids += [IMAGE_ID] * (number > 0)
            ids += self.tokenizer(piece, add_special_tokens=False).input_ids if piece else []
        if self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise PromptError(f"{name}: it begins with two BOS tokens: {text[:60]!r}")
        return ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two lists have in common at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def _runs(prompt: Prompt) -> list[tuple[list[int], bool]]:
    """The ids in runs of equal `trained`; the image is a run of its own."""
    runs: list[tuple[list[int], bool]] = []
    for token, trained in zip(prompt.ids, prompt.trained, strict=True):
        if runs and runs[-1][1] == trained and IMAGE_ID not in (token, runs[-1][0][-1]):
            runs[-1][0].append(token)
        else:
            runs.append(([token], trained))
    return runs
