"""Language models: any causal one of transformers, or a small one from scratch, with its tokenizer."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from uniflow.core.errors import one_line
from uniflow.core.files import check_folder, read_text
from uniflow.core.numbers import CheckedNumbers, NonNegativeInt, PositiveInt
from uniflow.core.tensors import refuse_nonfinite
from uniflow.data.scenes.language import ANSWERS, questions
from uniflow.data.scenes.scene import sample_scene

WORD = r"\w+|[^\w\s]+"  # what tokenizers' `Whitespace` takes as one word


class LanguageModel(ABC, CheckedNumbers):
    """Where a language model comes from.

    Attributes:
        pretrained: whether it can stay frozen; one from scratch has to be trained.
    """

    pretrained: ClassVar[bool]

    @abstractmethod
    def load(self) -> tuple[Any, Any]:
        """The model, a transformers `PreTrainedModel` in evaluation mode on the CPU, and its tokenizer."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments; a folder's path is absolute."""


class PretrainedLM(LanguageModel):
    """A causal language model of transformers. Nothing is unpickled, and no code that comes with a model is run.

    Args:
        name: hub id, or a folder. With HF_HUB_OFFLINE=1 only local files and the cache are looked at.
        gguf_file: name of a GGUF file in it, which is turned into plain weights (needs the package gguf).
        dtype: of the weights. A frozen model in bfloat16 takes half the memory; trained weights stay in float32.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: in `load`, if there is no such model, or it cannot be read.
        ImportError: in `load`, if transformers is not installed.
    """

    pretrained = True

    def __init__(
        self,
        name: str,
        gguf_file: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        revision: str | None = None,
    ) -> None:
        self.name, self.gguf_file, self.dtype, self.revision = name, gguf_file, dtype, revision

    def settings(self) -> dict[str, Any]:
        name = os.path.abspath(self.name) if Path(self.name).is_dir() else self.name
        return {"name": name, "gguf_file": self.gguf_file, "dtype": self.dtype, "revision": self.revision}

    def load(self) -> tuple[Any, Any]:
        transformers = require_transformers()
        where: dict[str, Any] = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        if self.revision:
            where["revision"] = self.revision
        weights = {} if self.gguf_file else {"use_safetensors": True}
        check_folder(self.name)
        try:
            with without_bars():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, trust_remote_code=False, **where)
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    self.name, dtype=getattr(torch, self.dtype), trust_remote_code=False, **where, **weights
                )
        except Exception as error:  # transformers and the hub's client raise errors of many kinds
            what = f"{self.name}/{self.gguf_file}" if self.gguf_file else self.name
            raise ValueError(f"no language model can be read from {what!r}: {one_line(error, 300)}") from error
        refuse_nonfinite(dict(model.named_parameters()), self.name)
        if self.gguf_file:
            _forget_quantization(model)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.eval(), tokenizer


class ScratchLM(LanguageModel):
    """A small Llama with random weights, whose tokens are the words of the data: it is trained together with the
    projector, in seconds.

    Args:
        width: of its embeddings.
        depth: number of blocks.
        heads: attention heads, a divisor of the width.
        texts: a UTF-8 file whose words, in any format, are the vocabulary; null takes those of the questions about
            Scenes. Other words become <unk>.
        seed: of the weights.

    Raises:
        ValueError: if the width is not a multiple of 2 * heads; in `load`, if the file cannot be read.
    """

    pretrained = False

    def __init__(
        self,
        width: PositiveInt = 128,
        depth: PositiveInt = 2,
        heads: PositiveInt = 4,
        texts: str | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        if width % (2 * heads):
            raise ValueError(f"ScratchLM.width {width} is not a multiple of 2 * heads = {2 * heads}")
        self.width, self.depth, self.heads, self.texts, self.seed = width, depth, heads, texts, seed

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("width", "depth", "heads", "texts", "seed")}

    def load(self) -> tuple[Any, Any]:
        transformers = require_transformers()
        tokenizer = word_tokenizer(scene_words() if self.texts is None else _words_of(Path(self.texts)))
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=3 * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            # The usual 0.02 is for wide models: in a narrow one it makes attention uniform for hundreds of steps.
            initializer_range=self.width**-0.5,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = transformers.LlamaForCausalLM(config)
        return model.eval(), tokenizer


def word_tokenizer(words: list[str]) -> Any:
    """A tokenizer of transformers whose tokens are whole words and punctuation, with <pad>, <unk>, <bos> and <eos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return require_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )


def scene_words() -> list[str]:
    """The words of all questions about Scenes and their answers."""
    texts = [*ANSWERS]
    for index in range(400):  # each template and each name occurs many times
        rng = np.random.default_rng(index)
        texts += [question.question for question in questions(sample_scene(0, index), rng)]
    return sorted(set(re.findall(WORD, " ".join(texts))))


def _words_of(path: Path) -> list[str]:
    try:
        return sorted(set(re.findall(WORD, read_text(path))))
    except OSError as error:
        raise ValueError(f"ScratchLM.texts: {path} cannot be read ({error.strerror or error})") from error


def _forget_quantization(model: Any) -> None:
    """The weights of a GGUF file are plain by now: the model can be saved like any other."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which a small model's files are not worth."""
    logging = require_transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def require_transformers() -> Any:
    """The package transformers.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("language models need transformers: pip install uniflow[language]") from error
    return transformers
