"""Visual question answering: a language model answers from features, through a projector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from uniflow.core.numbers import NonNegativeFloat, PositiveFloat, PositiveInt
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.data.scenes import QUESTION_KINDS
from uniflow.features import FeatureSource
from uniflow.heads import Head
from uniflow.language.answers import Answerer, Tune, normalized
from uniflow.language.assistant import PROJECTOR, save_assistant, with_image
from uniflow.language.collate import TokenBatch, collate_prompts
from uniflow.language.models import LanguageModel, ScratchLM
from uniflow.language.projector import Projector
from uniflow.language.prompts import ChatTemplate, Prompts, Template, TextTemplate, Turn
from uniflow.layers.blocks import checkpoint_blocks, find_blocks
from uniflow.pictures.answers import answer_cards
from uniflow.sharding.shard import full_state_dict, is_sharded
from uniflow.tasks.base import Stage
from uniflow.tasks.features import FeatureTask
from uniflow.tokenizer.saving import load_strictly, read_tensors
from uniflow.training.trainer import data_of, is_dry_run


class Asked(NamedTuple):
    """One question of an evaluation: the turns before it and itself, its image's number, kind and true answer."""

    turns: list[Turn]
    image: int
    kind: str
    truth: str


class AnswerAccuracy(Metric):
    """Share of right answers after `uniflow.language.normalized`, over all questions and for each kind of them."""

    right: Tensor
    asked: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = list(kinds)
        for name in ("right", "asked"):
            self.add_state(name, torch.zeros(len(self.kinds) + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, answers: Sequence[str], truths: Sequence[str], kinds: Sequence[str]) -> None:
        """Feed answers; a kind that is not among `kinds` counts in the total alone."""
        for answer, truth, kind in zip(answers, truths, kinds, strict=True):
            places = [0] + ([1 + self.kinds.index(kind)] if kind in self.kinds else [])
            self.asked[places] += 1
            self.right[places] += normalized(answer) == normalized(truth)

    def compute(self) -> dict[str, Tensor]:
        """By name of the metric; a kind that nobody asked for is left out."""
        names = ["vqa_accuracy", *(f"vqa_accuracy_{kind}" for kind in self.kinds)]
        return {name: self.right[i] / self.asked[i] for i, name in enumerate(names) if self.asked[i] or not i}


class AnswerHead(Head):
    """Image tokens of features, the language model's loss on the answers, and the share of right answers.

    Args:
        answerer: the language model behind its projector.
        separate: train on each question of an image alone, instead of on all of them as one conversation.
        max_new_tokens: most tokens of an answer.
        answer_batch: questions answered at a time.
        weight: factor on the loss.
    """

    name = "vqa"
    entry_points = ("loss", "update_metrics", "replies")

    def __init__(
        self,
        answerer: Answerer,
        separate: bool = False,
        max_new_tokens: PositiveInt = 16,
        answer_batch: PositiveInt = 64,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(weight)
        self.answerer, self.separate = answerer, separate
        self.max_new_tokens, self.answer_batch = max_new_tokens, answer_batch
        self.kinds: Sequence[str] = QUESTION_KINDS
        self.last: TokenBatch | None = None  # of the last loss, for what is logged

    def check_shardable(self) -> None:
        """FSDP2 replaces a part's parameters, and adapters are also in the frozen model, which it does not see.

        Raises:
            ValueError: if there are adapters.
        """
        if self.answerer.tune == "lora":
            raise ValueError("tune_lm lora cannot be sharded: use --trainer.strategy ddp, or tune_lm full")

    def check_data(self, data: Any) -> None:
        fields = getattr(data, "fields", None)
        if fields is not None and not {"questions", "conversation"} & set(fields):
            raise ValueError(f"{type(data).__name__} has no questions: set --data.fields [questions]")
        self.kinds = getattr(data, "question_kinds", QUESTION_KINDS)

    def forward(self, features: EncoderOutput) -> Tensor:
        """The image tokens, (B, n, width of the language model)."""
        return self.answerer.projector(features)

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        self.last, images = self.prompts_of(prediction.shape[1], batch)
        self.last = self.last.to(prediction.device)
        groups = None if self.training else images.to(prediction.device)
        return self.answerer.loss(prediction, self.last, groups)

    def prompts_of(self, image_tokens: int, batch: dict[str, Any]) -> tuple[TokenBatch, Tensor]:
        """The prompts of a batch with their labels, and the number of each one's image.

        Raises:
            PromptError: if a sample cannot be trained on; it names the sample.
        """
        chosen = list(conversations(batch, self.separate, shuffle=self.training))
        prompts = [self.answerer.prompts.training(turns, name) for turns, _, name in chosen]
        numbers, names = [image for _, image, _ in chosen], [name for _, _, name in chosen]
        made = collate_prompts(prompts, numbers, image_tokens, self.answerer.pad_id, names=names)
        return made, torch.tensor(numbers)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"vqa": AnswerAccuracy(self.kinds)})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        asked = list(questions_asked(batch))
        answers = self.replies(prediction, asked)
        metrics.update(answers, [a.truth for a in asked], [a.kind for a in asked])

    def replies(self, prediction: Tensor, asked: Sequence[Asked]) -> list[str]:
        """Answers to questions about images whose tokens are `prediction`."""
        prompts = [self.answerer.prompts.asking(question.turns) for question in asked]
        images = [question.image for question in asked]
        return self.answerer.answers(prediction, prompts, images, self.max_new_tokens, self.answer_batch)


class VisualQuestionTask(FeatureTask):
    """Trains a projector, and as far as wanted a language model, to answer questions about images (LLaVA-1.5, arXiv
    2310.03744).

    Batches have "image", and for each image either "questions", a list of dicts with "question", "answer" and "kind",
    independent of each other and all about the image; or "conversation", such a list in order, in whose text <image>
    stands where the image does (or nowhere: text alone).

    Training takes the questions of an image as one conversation in random order, or each alone (`separate`).
    Evaluation asks each question alone, and each turn of a conversation after the true turns before it; an answer is
    right if it equals the true one after `uniflow.language.normalized`. Logs `val/vqa_accuracy` and
    `test/vqa_accuracy`, the same for each kind of question (`test/vqa_accuracy_count`, ...), the loss `train/vqa`, and
    the share of text tokens that are trained, `train/trained_tokens`, and of prompts that lost text, `train/cut`.

    When fit ends, RUN/assistant holds what `uniflow chat` and `uniflow.language.Assistant` need. A language model that
    is not fully trained is in no checkpoint.

    Args:
        source: makes the source of the features.
        lm: the language model; by default a small one from scratch for questions about Scenes.
        tune_lm: what is trained of it: nothing, low-rank adapters, or all.
        template: how conversations are written; by default the tokenizer's chat template if it has one, else plain
            text without a system message.
        merge: side of the square of neighbouring tokens that become one image token.
        norm: layer norm in front of the projector, see `Projector`.
        max_tokens: most tokens of a conversation's text in training, see `Prompts`.
        separate: train on each question alone.
        lora_rank: with `lora`, rank of the adapters.
        lora_alpha: with `lora`, the adapters are scaled by this over their rank.
        lora_targets: with `lora`, last names of the adapted linear layers; null is all in the blocks.
        max_new_tokens: most tokens of an answer.
        answer_batch: questions answered at a time.
        init_projector: RUN/assistant of an earlier stage, whose projector training starts from. Not read when a run is
            resumed or tested.
        tune_source: see `FeatureTask`.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.

    Raises:
        ValueError: if a model from scratch is not trained.
    """

    monitor = ("val/vqa_accuracy", "max")

    def __init__(
        self,
        source: Callable[[], FeatureSource],
        lm: LanguageModel | None = None,
        tune_lm: Tune = "frozen",
        template: Template | None = None,
        merge: PositiveInt = 1,
        norm: bool = True,
        max_tokens: PositiveInt = 2048,
        separate: bool = False,
        lora_rank: PositiveInt = 16,
        lora_alpha: PositiveFloat = 32.0,
        lora_targets: list[str] | None = None,
        max_new_tokens: PositiveInt = 16,
        answer_batch: PositiveInt = 64,
        init_projector: str | None = None,
        tune_source: bool = False,
        **task: Any,
    ) -> None:
        super().__init__(source, [self._make_head], tune_source, probe_images=0, **task)
        self.language = lm or ScratchLM()
        if not self.language.pretrained and tune_lm != "full":
            raise ValueError(f"{type(self.language).__name__} has random weights: set tune_lm to full, not {tune_lm}")
        self.tune_lm, self.template, self.merge, self.norm = tune_lm, template, merge, norm
        self.max_tokens, self.init_projector = max_tokens, init_projector
        adapters: dict[str, Any] = {"lora_rank": lora_rank, "lora_alpha": lora_alpha, "lora_targets": lora_targets}
        self.lora = adapters if tune_lm == "lora" else {}
        self._answering: dict[str, Any] = {
            "separate": separate,
            "max_new_tokens": max_new_tokens,
            "answer_batch": answer_batch,
        }

    def _make_head(self, spec: FeatureSpec) -> AnswerHead:
        lm, tokenizer = self.language.load()
        template = self.template
        if template is None:
            template = ChatTemplate() if tokenizer.chat_template else TextTemplate("", "{}", " {}{eos}")
        projector = Projector(spec, lm.get_input_embeddings().embedding_dim, self.merge, self.norm)
        prompts = Prompts(tokenizer, template, self.max_tokens)
        return AnswerHead(Answerer(lm, prompts, projector, self.tune_lm, **self.lora), **self._answering)

    @property
    def head(self) -> AnswerHead:
        """The only head."""
        head = self.heads["vqa"]
        assert isinstance(head, AnswerHead)
        return head

    @property
    def answerer(self) -> Answerer:
        """The language model behind its projector."""
        return self.head.answerer

    def head_precision(self) -> AbstractContextManager[Any]:
        return nullcontext()  # a language model takes part in mixed precision; the loss itself is in float32

    def build_heads(self, spec: FeatureSpec) -> None:
        super().build_heads(spec)
        if self.init_projector and self._trainer is not None and self.trainer.training and not self.trainer.ckpt_path:
            path = Path(self.init_projector)
            if not (path / PROJECTOR).is_file():
                raise ValueError(f"init_projector: {path} has no {PROJECTOR}; give RUN/assistant of an earlier stage")
            load_strictly(self.answerer.projector, read_tensors(path / PROJECTOR), path)
            rank_zero_info(f"start: the projector of {path}")

    def _prepare_blocks(self) -> None:
        super()._prepare_blocks()
        if self.tune_lm != "full":  # it is in no part
            checkpoint_blocks(find_blocks(self.answerer.lm), self.activation_checkpointing)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        last = self.head.last
        assert last is not None
        self.log_dict({"train/trained_tokens": last.trained, "train/cut": last.cut})
        if self.global_step == 0 and batch_idx == 0:
            rank_zero_info(self.shown_sample(batch))
        return loss

    def shown_sample(self, batch: dict[str, Any]) -> str:
        """The first conversation of a batch as the language model reads it, the trained parts in [[ ]]."""
        turns, _, name = next(conversations(batch, self.head.separate))
        prompts = self.answerer.prompts
        return f"{name}, trained parts in [[ ]]: {prompts.decoded(prompts.training(turns, name))!r}"

    @torch.no_grad()
    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]:
        """The first images, each beside its questions, the answers and, where they differ, the true answers."""
        images = batch["image"][:count]
        asked = [question for question in questions_asked(batch) if question.image < len(images)]
        answers = self.head.replies(self.head(self.features(images)), asked)
        lines: list[list[tuple[str, str, str]]] = [[] for _ in images]
        for question, answer in zip(asked, answers, strict=True):
            text = question.turns[-1].question.replace("<image>", "").strip()
            right = normalized(answer) == normalized(question.truth)
            lines[question.image].append((text, answer, "" if right else question.truth))
        return {"answers": answer_cards(to_unit_range(images).cpu(), lines)}

    def example_batch(self, images: Tensor) -> dict[str, Any]:
        turn = {"question": "How many objects are there?", "answer": "two", "kind": "count"}
        return {"image": images, "questions": [[turn]] * len(images)}

    def stages(self, images: Tensor) -> Iterator[Stage]:
        *before, head = super().stages(images)
        yield from before
        yield Stage("projector", [self.answerer.projector], head.run)

    def on_fit_end(self) -> None:
        if is_dry_run(self.trainer):
            return
        state = full_state_dict(self.answerer)  # by all processes
        seen = full_state_dict(self.source) if is_sharded(self.source) else None
        if not self.trainer.is_global_zero:
            return
        source = self.source
        if seen is not None:  # the sharded one has pieces of its weights only
            source = self._make_source()
            source.load_state_dict(seen)
        size = getattr(data_of(self.trainer), "size", None)
        size = (size, size) if isinstance(size, int) else size
        folder = Path(self.trainer.default_root_dir) / "assistant"
        try:
            save_assistant(folder, source, self.answerer, self.language, size, self.lora, state)
        except TypeError as error:  # a source of somebody's own
            rank_zero_warn(f"RUN/assistant is not written: {error}")

    def _source_to_device(self) -> None:
        super()._source_to_device()
        self.answerer.lm.to(self.device)


def conversations(
    batch: dict[str, Any], separate: bool, shuffle: bool = False
) -> Iterator[tuple[list[Turn], int, str]]:
    """What is trained on in a batch: turns, number of the image, name of the sample.

    Args:
        batch: see `VisualQuestionTask`.
        separate: each of an image's "questions" alone.
        shuffle: bring an image's "questions" into a random order, by the step's own seed.
    """
    names = batch.get("name") or [f"sample {number} of the batch" for number in range(len(batch["image"]))]
    for number, turns in enumerate(batch.get("conversation", [])):
        yield [_turn(turn) for turn in turns], number, names[number]
    for number, questions in enumerate(batch.get("questions", [])):
        order = torch.randperm(len(questions)).tolist() if shuffle else range(len(questions))
        turns = [_turn(questions[i]) for i in order]
        for chosen in [[turn] for turn in turns] if separate else [turns] if turns else []:
            yield with_image(chosen), number, names[number]


def questions_asked(batch: dict[str, Any]) -> Iterator[Asked]:
    """What is asked in an evaluation of a batch."""
    for number, turns in enumerate(batch.get("conversation", [])):
        for last, turn in enumerate(turns):
            before = [_turn(earlier) for earlier in turns[:last]]
            yield Asked([*before, Turn(turn["question"])], number, turn.get("kind", ""), turn["answer"])
    for number, questions in enumerate(batch.get("questions", [])):
        for turn in questions:
            asked = with_image([Turn(turn["question"])])
            yield Asked(asked, number, turn.get("kind", ""), turn["answer"])


def _turn(turn: dict[str, str]) -> Turn:
    return Turn(turn["question"], turn["answer"])
