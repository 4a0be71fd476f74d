"""A language model that reads image tokens: its loss on answers, and the answers that it gives."""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.core.numbers import CheckedNumbers, PositiveFloat, PositiveInt
from uniflow.encoders.lora import add_adapters
from uniflow.language.collate import IGNORE, TokenBatch, collate_prompts
from uniflow.language.projector import Projector
from uniflow.language.prompts import IMAGE_ID, Prompt, Prompts
from uniflow.layers.blocks import find_blocks
from uniflow.layers.precision import full_precision

Tune = Literal["frozen", "lora", "full"]
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Answerer(CheckedNumbers, nn.Module):
    """A causal language model behind a projector, as in LLaVA-1.5 (arXiv 2310.03744).

    A language model that is not fully trained is outside the module tree: checkpoints hold the projector alone, and
    with `lora` the adapters, as `adapters`.

    Args:
        lm: a causal language model of transformers.
        prompts: makes tokens of conversations; holds the tokenizer.
        projector: features -> image tokens.
        tune: what is trained of the language model.
        lora_rank: with `lora`, rank of the adapters in all linear layers of the blocks.
        lora_alpha: with `lora`, the adapters are scaled by this over their rank.
        lora_targets: with `lora`, last names of the linear layers that are adapted; null is all.

    Raises:
        ValueError: if the blocks have no such layer.
        ImportError: with `lora`, if peft is not installed.
    """

    lm: Any

    def __init__(
        self,
        lm: Any,
        prompts: Prompts,
        projector: Projector,
        tune: Tune = "frozen",
        lora_rank: PositiveInt = 16,
        lora_alpha: PositiveFloat = 32.0,
        lora_targets: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.prompts, self.projector, self.tune = prompts, projector, tune
        if tune == "full":
            self.lm = lm
            return
        object.__setattr__(self, "lm", lm.requires_grad_(False).eval())
        if tune == "lora":
            add_adapters(lm, nn.ModuleList(find_blocks(lm)), lora_rank, lora_alpha, lora_targets)
            trained = {name: weight for name, weight in lm.named_parameters() if weight.requires_grad}
            for weight in trained.values():
                weight.data = full_precision(weight.data)
            # The same parameters as in the model; a ParameterDict takes no dots in its keys.
            self.adapters = nn.ParameterDict({name.replace(".", "/"): weight for name, weight in trained.items()})

    @property
    def tokenizer(self) -> Any:
        return self.prompts.tokenizer

    @property
    def pad_id(self) -> int:
        """Id of padding; what stands there is masked."""
        return next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)

    def loss(self, tokens: Tensor, batch: TokenBatch, groups: Tensor | None = None) -> Tensor:
        """Mean cross entropy in float32 over the trained tokens.

        Args:
            tokens: of the images, (B, n, width), from the projector.
            batch: prompts with padding on the right, on the same device.
            groups: for each prompt the number of its sample, int64 (T,): the mean over samples of each one's own mean,
                which does not depend on how an evaluation is divided into batches.

        Raises:
            ValueError: if the prompts have room for another number of image tokens.
        """
        targets = batch.labels[:, 1:]
        # Only where some prompt has a trained token: the vocabulary is the largest matrix of a small language model.
        kept = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)
        inputs = {"inputs_embeds": self.embeddings(tokens, batch), "attention_mask": batch.mask, "use_cache": False}
        if "logits_to_keep" in inspect.signature(type(self.lm).forward).parameters:
            logits = self.lm(**inputs, logits_to_keep=kept).logits
        else:
            logits = self.lm(**inputs).logits[:, kept]
        wanted = targets[:, kept]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORE, reduction="none")
        totals, counts = losses.view(wanted.shape).sum(dim=1), (wanted != IGNORE).sum(dim=1)
        if groups is None:
            return totals.sum() / counts.sum()
        size = int(groups.max()) + 1
        totals, counts = (torch.zeros(size, device=t.device).index_add(0, groups, t.float()) for t in (totals, counts))
        return (totals / counts)[counts > 0].mean()

    def embeddings(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """What the language model reads, (T, L, width): embeddings of the text, and the images' tokens in between.

        Raises:
            ValueError: if the prompts have room for another number of image tokens.
        """
        text = self.lm.get_input_embeddings()(batch.ids.clamp_min(0))
        slots, shown = batch.ids == IMAGE_ID, batch.images[batch.images >= 0]
        given = tokens[shown].flatten(0, 1).to(text.dtype)
        if int(slots.sum()) != len(given):
            raise ValueError(f"the prompts have room for {int(slots.sum())} image tokens, the images have {len(given)}")
        if not len(given):  # the projector takes part in every step: else DDP would wait for its gradient
            return text + 0 * tokens.sum().to(text.dtype)
        return text.masked_scatter(slots[..., None], given)

    @torch.no_grad()
    def answers(
        self,
        tokens: Tensor,
        prompts: Sequence[Prompt],
        images: Sequence[int],
        max_new_tokens: int = 32,
        batch_size: int = 64,
        streamer: Any = None,
    ) -> list[str]:
        """Answers by greedy decoding with a cache of keys and values.

        Args:
            tokens: of the images, (B, n, width).
            prompts: of `Prompts.asking`.
            images: for each prompt the number of its image.
            max_new_tokens: most tokens of an answer.
            batch_size: prompts at a time; prompts of similar length go together.
            streamer: of transformers, for one prompt: gets the tokens as they come.
        """
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = collate_prompts(
                [prompts[i] for i in part], [images[i] for i in part], tokens.shape[1], self.pad_id, side="left"
            ).to(tokens.device)
            made = self._generate(tokens, batch, max_new_tokens, streamer)
            for number, ids in zip(part, made.tolist(), strict=True):
                texts[number] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return texts

    def _generate(self, tokens: Tensor, batch: TokenBatch, max_new_tokens: int, streamer: Any) -> Tensor:
        from transformers import GenerationConfig

        # Not the model's own: that of many chat models samples.
        own = self.lm.generation_config.eos_token_id
        stops = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(stops), pad_token_id=self.pad_id
        )
        training = self.lm.training
        self.lm.eval()
        try:
            return self.lm.generate(
                inputs_embeds=self.embeddings(tokens, batch),
                attention_mask=batch.mask,
                generation_config=config,
                streamer=streamer,
            )
        finally:
            self.lm.train(training)


def normalized(answer: str) -> str:
    """An answer as it is compared: lower case, without punctuation and articles, numbers from 0 to 10 as digits."""
    words = re.sub(f"[{re.escape(string.punctuation)}]", " ", answer.lower()).split()
    digits = {word: str(number) for number, word in enumerate(NUMBERS)}
    return " ".join(digits.get(word, word) for word in words if word not in ("a", "an", "the"))
