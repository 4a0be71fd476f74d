"""Text as a condition: the states of a frozen text encoder."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uniflow.conditions.base import Condition, Conditioning
from uniflow.core.numbers import PositiveInt, UnitFloat
from uniflow.core.specs import ConditionSpec
from uniflow.core.tensors import weights_hash
from uniflow.core.text_models import read_text_config, read_text_model

CACHED_TOKENS = 2**18  # states kept in memory: 600 MB for a model of width 576
WHAT = "text encoder"


class TextCondition(Condition):
    """A text ("caption", a list of B): the last hidden states of a frozen text encoder, each a token to attend to, and
    their mean as the vector. A learned token and a learned vector stand for no text, an empty one included.

    Normalisation, projections and these two are trained and saved; of the text encoder only its name and hash are. The
    states of a text are computed once, as long as they are kept in memory.

    Args:
        name: a hub id, a folder, or a GGUF file, of an encoder (CLIP, T5 and BERT with their kin) or a causal language
            model of transformers. Nothing is unpickled, and no code that comes with a model is run.
        width: channels of the vector.
        token_width: channels of a token.
        max_tokens: tokens of a text beyond this number are cut off.
        dropout: share of training samples without text.
        dtype: of the text encoder's weights.
        revision: branch, tag or commit on the hub.
        text_width: channels of its states; null reads the model's config. Recorded.
        text_hash: first 12 hex digits of its weights' SHA-256; null records that of the model that is found, any other
            is required, and then nothing is fetched from the hub.

    Raises:
        ValueError: if there is no such model; when it is first used, also if its hash is another one.
        ImportError: if transformers is not installed.
    """

    field = "caption"

    def __init__(
        self,
        name: str,
        width: PositiveInt = 256,
        token_width: PositiveInt = 256,
        max_tokens: PositiveInt = 64,
        dropout: UnitFloat = 0.1,
        dtype: Literal["float32", "bfloat16"] = "float32",
        revision: str | None = None,
        text_width: PositiveInt | None = None,
        text_hash: str | None = None,
    ) -> None:
        super().__init__()
        name = os.path.abspath(name) if Path(name).exists() else name
        self.spec, self.dropout = ConditionSpec(width, token_width), dropout
        self.encoder = FrozenText(name, max_tokens, dtype, revision, text_hash)
        text_width = text_width or self.encoder.width()
        self.record_resolved(name=name, text_width=text_width)
        self.norm = nn.LayerNorm(text_width)
        self.token_proj, self.vector_proj = nn.Linear(text_width, token_width), nn.Linear(text_width, width)
        self.null_token = nn.Parameter(torch.randn(token_width) * 0.02)
        self.null_vector = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, values: Sequence[str] | None, dropped: Tensor) -> Conditioning:
        if values is None:
            count = len(dropped)
            tokens, mask = self.null_token.repeat(count, 1, 1), torch.ones_like(dropped)[:, None]
            return Conditioning(self.null_vector.repeat(count, 1), tokens, mask)
        states, mask = self._states(values, dropped)
        dropped = dropped | ~mask.any(dim=1)
        states = self.norm(states)
        mean = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        # Both sides of each choice are in the graph, whatever was dropped: every process has all gradients.
        vector = torch.where(dropped[:, None], self.null_vector, self.vector_proj(mean))
        tokens = torch.where(dropped[:, None, None], self.null_token, self.token_proj(states))
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return Conditioning(vector, tokens, torch.where(dropped[:, None], first, mask))

    def _states(self, texts: Sequence[str], dropped: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, text_width), zero where the mask (B, T) is False; T is at least 1."""
        if type(dropped) is not Tensor:  # `uniflow plan` asks for shapes alone
            shape = (len(texts), self.encoder.max_tokens)
            return dropped.new_zeros((*shape, self.norm.weight.shape[0]), dtype=torch.float32), dropped.new_ones(shape)
        states = self.encoder.states(texts, dropped.device)
        self.record_resolved(text_hash=self.encoder.text_hash)
        padded = nn.utils.rnn.pad_sequence([*states, states[0].new_zeros(1, states[0].shape[1])], batch_first=True)
        lengths = torch.tensor([len(state) for state in states])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return padded[:-1].to(dropped.device), mask.to(dropped.device)

    def share(self, model: Any, tokenizer: Any) -> bool:
        return self.encoder.share(model, tokenizer)

    def parse(self, words: Sequence[str]) -> list[str]:
        """The words themselves, each a text."""
        return list(words)

    def example(self, count: int) -> list[str]:
        return ["a text"] * count


class FrozenText:
    """A text encoder beside the module tree, loaded when it is first used, with the states of the latest texts.

    Args:
        name, max_tokens, dtype, revision, text_hash: as for `TextCondition`.
    """

    def __init__(self, name: str, max_tokens: int, dtype: str, revision: str | None, text_hash: str | None) -> None:
        is_gguf = name.lower().endswith(".gguf")
        self.name = os.path.dirname(name) if is_gguf else name
        self.gguf_file = os.path.basename(name) if is_gguf else None
        self.max_tokens, self.dtype, self.revision = max_tokens, dtype, revision
        self.text_hash = text_hash
        self._loaded: tuple[nn.Module, Any] | None = None
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_tokens = 0

    def width(self) -> int:
        """Channels of the states, from the model's config."""
        config = read_text_config(self.name, self.gguf_file, self.revision, what=WHAT)
        return int(config.get_text_config().hidden_size)

    def states(self, texts: Sequence[str], device: torch.device) -> list[Tensor]:
        """The states (T, width) of each text, float32 on the CPU; T can be 0.

        Args:
            texts: B texts.
            device: where to compute.

        Raises:
            ValueError: if a text is not one, or the model cannot be read or has another hash.
        """
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"TextCondition reads texts, got {wrong[0]!r}")
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        for begin in range(0, len(new), 64):
            chunk = new[begin : begin + 64]
            for text, state in zip(chunk, self._compute(chunk, device), strict=True):
                self._cache[text] = state
                self._cached_tokens += len(state)
        found = []
        for text in texts:
            self._cache.move_to_end(text)
            found.append(self._cache[text])
        while self._cached_tokens > CACHED_TOKENS and self._cache:
            self._cached_tokens -= len(self._cache.popitem(last=False)[1])
        return found

    def share(self, model: Any, tokenizer: Any) -> bool:
        """As `Condition.share`."""
        body = _text_part(getattr(model, "base_model", model))
        if self._loaded is not None or self.text_hash is None or weights_hash(body) != self.text_hash:
            return False
        self._loaded = (body, tokenizer)
        return True

    def _compute(self, texts: list[str], device: torch.device) -> list[Tensor]:
        model, tokenizer = self._load()
        model.to(device)
        given = tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt", padding_side="right"
        )
        mask = given["attention_mask"]
        if not mask.any():  # transformers refuses a batch without tokens
            return [torch.zeros(0, self.width()) for _ in texts]
        # Not as inference tensors: they are kept, and training needs gradients behind them.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            output = model(input_ids=given["input_ids"].to(device), attention_mask=mask.to(device))
            states = output.last_hidden_state.float().cpu()
            return [state[: int(length)].clone() for state, length in zip(states, mask.sum(dim=1), strict=True)]

    def _load(self) -> tuple[nn.Module, Any]:
        if self._loaded is None:
            known = self.text_hash is not None
            options: dict[str, Any] = {"what": WHAT, "local_only": known}
            model, tokenizer = read_text_model(
                "AutoModel", self.name, self.gguf_file, self.dtype, self.revision, **options
            )
            model = _text_part(model).requires_grad_(False)
            found = weights_hash(model)
            if known and found != self.text_hash:
                raise ValueError(
                    f"the text encoder at {self.name} has the weights {found}, this condition was trained with "
                    f"{self.text_hash}; give that one"
                )
            self.text_hash, self._loaded = found, (model, tokenizer)
        return self._loaded


def _text_part(model: Any) -> nn.Module:
    """What reads text in a model that reads images too (CLIP), or that also writes (T5)."""
    if hasattr(model, "text_model"):
        return model.text_model
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
