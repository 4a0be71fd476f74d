"""An assistant on disk: vision, projector and language model, to ask about images without training code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from uniflow.core.atomic import replacing
from uniflow.core.errors import one_line
from uniflow.core.imports import import_part
from uniflow.core.json_files import read_json_object
from uniflow.core.part import build_part, own_class, part_config
from uniflow.core.text_models import without_bars
from uniflow.data.understanding.conversations import fit_image
from uniflow.encoders.base import VisionEncoder
from uniflow.features import BlankSource, EncoderSource, FeatureSource, LatentSource, TokenizerSource
from uniflow.language.answers import Answerer
from uniflow.language.models import LanguageModel, PretrainedLM
from uniflow.language.projector import Projector
from uniflow.language.prompts import IMAGE, ChatTemplate, Prompts, Template, TextTemplate, Turn
from uniflow.tokenizer.saving import load_strictly, read_tensors

CONFIG, PROJECTOR, ADAPTERS, VISION, LM = (
    "assistant.json",
    "projector.safetensors",
    "adapters.safetensors",
    "vision",
    "lm",
)
FORMAT = 1
LARGEST = 2**14  # pixels of a side
TEMPLATES: dict[str, type[Template]] = {cls.__name__: cls for cls in (ChatTemplate, TextTemplate)}


class Assistant:
    """Answers questions about images.

    Args:
        source: of the features.
        answerer: the language model behind its projector.
        size: height and width in pixels that images are brought to; None keeps theirs.

    Example:
        Assistant.from_pretrained("runs/vqa/assistant").answer(image, "What color is the star?")
    """

    def __init__(self, source: FeatureSource, answerer: Answerer, size: tuple[int, int] | None = None) -> None:
        self.source, self.answerer, self.size = source.eval(), answerer.eval(), size

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, lm: str | None = None, gguf_file: str | None = None, tokenizer: str | None = None
    ) -> Self:
        """Load the folder that a fit of `VisualQuestionTask` leaves, RUN/assistant.

        Args:
            directory: the folder.
            lm: where the language model is, if it is not where it was at training: hub id or folder.
            gguf_file: with `lm`, name of the GGUF file in it.
            tokenizer: look with the encoder of this tokenizer, see `TokenizerSource`, at the layers of training.

        Raises:
            FileNotFoundError: if it is not such a folder.
            ValueError: if its files do not fit together, or the language model cannot be read.
        """
        folder = Path(directory)
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(
                f"{folder} is not an assistant: it has no {CONFIG}; `uniflow fit` leaves RUN/assistant"
            )
        config = read_json_object(folder / CONFIG)
        if config.get("format") != FORMAT:
            raise ValueError(f"this uniflow reads assistants of format {FORMAT}, not {config.get('format')!r}")
        try:
            return cls._build(folder, config, lm, gguf_file, tokenizer)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / CONFIG} does not describe an assistant: {one_line(error, 200)}") from error

    @classmethod
    def _build(
        cls, folder: Path, config: Mapping[str, Any], lm: str | None, gguf_file: str | None, tokenizer: str | None
    ) -> Self:
        source = load_source(folder / VISION, config["vision"])
        if tokenizer is not None:
            if not isinstance(source, EncoderSource):
                raise ValueError(f"{folder} does not read an encoder's features: no other tokenizer can take its place")
            own, source = source.spec, TokenizerSource(tokenizer, list(source.layers))
            if source.spec.embed_dim != own.embed_dim:
                raise ValueError(
                    f"the projector of {folder} reads features of width {own.embed_dim}, and those of {tokenizer} have "
                    f"{source.spec.embed_dim}: give a tokenizer of the same encoder, or train a projector for it"
                )
        settings = dict(config["lm"]) if config["lm"] else {"name": str(folder / LM)}
        if lm is not None:
            settings |= {"name": lm, "gguf_file": gguf_file}
        model, words = PretrainedLM(**settings).load()
        template = TEMPLATES[config["template"]["class"]](**config["template"]["init_args"])
        width = model.get_input_embeddings().embedding_dim
        projector = Projector(source.spec, width, **config["projector"])
        load_strictly(projector, read_tensors(folder / PROJECTOR), folder)
        adapted = config["lora"]
        answerer = Answerer(model, Prompts(words, template), projector, "lora" if adapted else "frozen", **adapted)
        if adapted:
            load_strictly(answerer.adapters, read_tensors(folder / ADAPTERS), folder)
        return cls(source, answerer, _size(config["size"], folder))

    def to(self, device: str | torch.device) -> Self:
        """Move everything to a device."""
        self.source.to(device)
        self.answerer.to(device)
        self.answerer.lm.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.answerer.projector.parameters()).device

    def answer(
        self,
        image: Tensor | None,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        max_new_tokens: int = 64,
        streamer: Any = None,
    ) -> str:
        """The answer to one question, by greedy decoding.

        Args:
            image: RGB (3, H, W), uint8 or float in [0, 1]; None asks about nothing but the text.
            question: in words; may say where the image stands by <image>, by default in front of the first question.
            history: questions and answers before this one.
            max_new_tokens: most tokens of the answer.
            streamer: of transformers, such as its `TextStreamer`: gets the answer as it comes.
        """
        return self.answers(
            None if image is None else image[None],
            [[*map(Turn._make, history), Turn(question)]],
            max_new_tokens,
            streamer,
        )[0]

    @torch.no_grad()
    def answers(
        self,
        images: Tensor | None,
        conversations: Sequence[Sequence[Turn]],
        max_new_tokens: int = 64,
        streamer: Any = None,
    ) -> list[str]:
        """Answers to the last question of each conversation, the i-th about the i-th image (B, 3, H, W)."""
        if images is None:
            width = self.answerer.projector.width
            tokens = torch.zeros(len(conversations), 0, width, device=self.device)
        else:
            tokens = self.answerer.projector(self.source(self._fitted(images.to(self.device))))
            conversations = [with_image(turns) for turns in conversations]
        prompts = [self.answerer.prompts.asking(turns) for turns in conversations]
        return self.answerer.answers(tokens, prompts, range(len(prompts)), max_new_tokens, streamer=streamer)

    def _fitted(self, images: Tensor) -> Tensor:
        """Whole images at the size of training, their sides padded in the mean colour."""
        if self.size is None or tuple(images.shape[-2:]) == self.size:
            return images
        return fit_image(images, self.size)


def _size(value: Any, folder: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    known = isinstance(value, list) and len(value) == 2
    if not (known and all(type(side) is int and 1 <= side <= LARGEST for side in value)):
        raise ValueError(f"{folder / CONFIG}: size must be two numbers of pixels from 1 to {LARGEST:,}, not {value!r}")
    return value[0], value[1]


def with_image(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with the image in front of the first question, unless one of them says where it stands."""
    if any(IMAGE in turn.question for turn in turns):
        return list(turns)
    return [Turn(f"{IMAGE}\n{turns[0].question}", turns[0].answer), *turns[1:]]


def save_assistant(
    folder: Path,
    source: FeatureSource,
    answerer: Answerer,
    lm: LanguageModel,
    size: tuple[int, int] | None,
    lora: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what `Assistant.from_pretrained` reads.

    A pretrained language model that is frozen is not copied: the config says where it is. A trained one is saved.

    Args:
        folder: made if needed; its files are replaced.
        source: of the features.
        answerer: to save.
        lm: where its language model came from.
        size: of the images in training.
        lora: the adapters' rank, alpha and targets; empty without adapters.
        state: the answerer's whole state, if it is sharded.

    Raises:
        TypeError: if this kind of source cannot be saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = answerer.state_dict() if state is None else state

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.detach().cpu().contiguous() for k, v in state.items() if k.startswith(prefix)}

    (folder / VISION).mkdir(exist_ok=True)
    vision = save_source(source, folder / VISION)
    _write_tensors(part("projector."), folder / PROJECTOR)
    if lora:
        _write_tensors(part("adapters."), folder / ADAPTERS)
    if answerer.tune == "full":
        with without_bars():
            answerer.lm.save_pretrained(folder / LM, state_dict=part("lm."))
        answerer.tokenizer.save_pretrained(folder / LM)
    template = answerer.prompts.template
    config = {
        "format": FORMAT,
        "vision": vision,
        "projector": answerer.projector.settings,
        "template": {"class": type(template).__name__, "init_args": template.settings()},
        "lm": None if answerer.tune == "full" else lm.settings(),
        "lora": dict(lora),
        "size": None if size is None else list(size),
    }
    with replacing(folder / CONFIG) as new:
        new.write_text(json.dumps(config, indent=2) + "\n")


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with replacing(path) as new:
        new.touch()
        rights = new.stat().st_mode  # of any new file; safetensors makes some that only their owner can read
        save_file(tensors, new, metadata={"format": "pt"})
        new.chmod(rights)


@singledispatch
def save_source(source: FeatureSource, folder: Path) -> dict[str, Any]:
    """Write a source's weights into `folder`; the result is what `load_source` needs besides, for JSON.

    Raises:
        TypeError: if there is no way to save this kind of source.
    """
    raise TypeError(f"a {type(source).__name__} cannot be saved: register a function with uniflow.language.save_source")


@save_source.register
def _(source: EncoderSource, folder: Path) -> dict[str, Any]:
    encoder = source.encoder
    config = part_config(encoder)
    arguments, tensors = own_class(encoder).plain_state(config["init_args"], encoder.state_dict())  # type: ignore[attr-defined]
    _write_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / "encoder.safetensors"
    )
    return {"kind": "encoder", "encoder": {**config, "init_args": arguments}, "layers": list(source.layers)}


@save_source.register
def _(source: LatentSource, folder: Path) -> dict[str, Any]:
    source.tokenizer.save_pretrained(folder)
    return {"kind": "latents", "normalize": source.normalize}


@save_source.register
def _(source: BlankSource, folder: Path) -> dict[str, Any]:
    spec = source.spec
    return {"kind": "blank", "init_args": {n: getattr(spec, n) for n in ("patch_size", "embed_dim", "num_layers")}}


def load_source(folder: Path, config: Mapping[str, Any]) -> FeatureSource:
    """The source that `save_source` wrote.

    Raises:
        ValueError: if it is of an unknown kind, or its weights do not fit.
    """
    kind = config.get("kind")
    if kind == "latents":
        return LatentSource(str(folder), config["normalize"])
    if kind == "blank":
        return BlankSource(**config["init_args"])
    if kind != "encoder":
        raise ValueError(f"{folder} holds a source of an unknown kind, {kind!r}")
    encoder: VisionEncoder = build_unloaded(config["encoder"])
    load_strictly(encoder, read_tensors(folder / "encoder.safetensors"), folder)
    return EncoderSource(lambda: encoder, list(config["layers"]))


def build_unloaded(config: Mapping[str, Any]) -> VisionEncoder:
    """The encoder that `config` describes, with random weights."""
    return build_part(config, VisionEncoder, **import_part(config, VisionEncoder).unloaded_arguments())
