"""What CLIP-like models have beside their vision blocks: the image head that pools and projects, and the text tower.

Only pieces of transformers' and open_clip's own models are used; no code that comes with a model is run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.core.errors import one_line
from uniflow.core.files import check_folder
from uniflow.core.json_files import read_json_object
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.encoders.loading import refuse_misfits
from uniflow.encoders.transformers_files import locate, read_config
from uniflow.encoders.transformers_towers import quiet

TEXTS_AT_ONCE = 64


class DualEncoder(nn.Module, ABC):
    """Image head and text tower of one model, frozen, in float32. Image and text meet in one space of E channels.

    Attributes:
        width: channels of the tokens that the image head reads.
        class_token: whether it needs a class token.
    """

    width: int
    class_token: bool

    @abstractmethod
    def pool(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """Tokens of the last block, before its final norm, (B, P, D) and (B, N, D) -> (B, E), of any length."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of T texts, (T, E), of any length."""

    @abstractmethod
    def scale_and_bias(self) -> tuple[Tensor, Tensor | float]:
        """What cosines are multiplied by, and what is added to them then."""

    def check_spec(self, spec: FeatureSpec, name: str) -> None:
        """Refuse features that the image head cannot read.

        Raises:
            ValueError: if the width is another, or there is no class token where one is read.
        """
        if spec.embed_dim != self.width:
            raise ValueError(
                f"{name}: its image head reads {self.width} channels, the features have {spec.embed_dim}; use the last "
                "layer of this model's own encoder, or of a tokenizer made of it"
            )
        if self.class_token and not spec.num_prefix_tokens:
            raise ValueError(f"{name}: its image head reads a class token, which the features do not have")

    def images(self, features: EncoderOutput) -> Tensor:
        """Embeddings of images, (B, E), of length 1, from the features of the last block."""
        return F.normalize(self.pool(features.prefix_tokens[-1], features.hidden_states[-1]), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of T texts, (T, E), of length 1."""
        parts = [self.encode_texts(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        return F.normalize(torch.cat(parts), dim=-1)

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Logits (B, C) as the model's own, of embeddings (B, E) and (C, E) of length 1."""
        scale, bias = self.scale_and_bias()
        return images @ classes.T * scale + bias


class TransformersDual(DualEncoder):
    """Of a `CLIPModel`, `SiglipModel` or `Siglip2Model` of transformers.

    Args:
        name: a folder with `config.json`, weights as safetensors and a tokenizer, or a hub id.

    Raises:
        ValueError: if it cannot be read, or is another kind of model.
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self._tokenize = _load_transformers(name, config)
        vision = self.model.vision_model
        self.class_token = config["model_type"] == "clip"
        self.width = vision.config.hidden_size
        self.norm = vision.post_layernorm
        self.head = self.model.visual_projection if self.class_token else vision.head
        self.model.vision_model = nn.Identity()  # its blocks are the encoder's business

    def pool(self, prefix: Tensor, patches: Tensor) -> Tensor:
        return self.head(self.norm(prefix[:, 0] if self.class_token else patches))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        # SigLIP was trained with padded texts; to CLIP padding makes no difference.
        tokens = self._tokenize(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return self.model.get_text_features(**tokens.to(self.model.logit_scale.device)).pooler_output

    def scale_and_bias(self) -> tuple[Tensor, Tensor | float]:
        return self.model.logit_scale.exp(), getattr(self.model, "logit_bias", 0.0)


class OpenClipDual(DualEncoder):
    """Of a model of open_clip whose vision tower is its own ViT.

    Args:
        name: a folder with `open_clip_config.json` and weights, or a hub id.

    Raises:
        ValueError: if it cannot be read, or has another vision tower.
        ImportError: if open_clip is not installed.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import open_clip  # type: ignore[import-untyped]
            from open_clip.transformer import VisionTransformer  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(f"{name} needs open_clip: pip install 'uniflow[zero-shot]'") from error
        full = f"{'local-dir' if Path(name).is_dir() else 'hf-hub'}:{name}"
        try:
            self.model: Any = open_clip.create_model(full, precision="fp32", weights_only=True, require_pretrained=True)
            self._tokenize: Any = open_clip.get_tokenizer(full)
        except Exception as error:  # open_clip and the hub raise errors of many types
            raise ValueError(f"{name!r} cannot be read by open_clip: {one_line(error)}") from error
        visual = self.model.visual
        if isinstance(visual, VisionTransformer):
            self.width = visual.transformer.width
            self.class_token = visual.attn_pool is None and visual.pool_type == "tok"
            visual.transformer = nn.Identity()
        else:
            raise ValueError(f"{name}: its vision tower {type(visual).__name__} is not open_clip's own ViT")

    def pool(self, prefix: Tensor, patches: Tensor) -> Tensor:
        tokens, visual = torch.cat([prefix, patches], dim=1), self.model.visual
        pooled, _ = visual._pool(tokens)
        return pooled if visual.proj is None else pooled @ visual.proj

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self._tokenize(list(texts)).to(self.model.logit_scale.device))

    def scale_and_bias(self) -> tuple[Tensor, Tensor | float]:
        bias = self.model.logit_bias
        return self.model.logit_scale.exp(), 0.0 if bias is None else bias


def load_dual(name: str) -> DualEncoder:
    """The image head and the text tower of a model.

    Args:
        name: a folder, or a hub id: of transformers (CLIP, SigLIP, SigLIP 2) or of open_clip.

    Raises:
        ValueError: if there is no such model, its weights cannot be read or do not fit, or it has no text tower.
        ImportError: if its library is not installed.
    """
    if locate(name, "open_clip_config.json") is not None and not _is_known(name):
        dual: DualEncoder = OpenClipDual(name)
    else:
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{name} needs transformers: pip install 'uniflow[zero-shot]'") from error
        dual = TransformersDual(name, read_config(name, offline=False))
    return dual.requires_grad_(False).eval()


_KINDS = ("clip", "siglip", "siglip2")


def _is_known(name: str) -> bool:
    path = locate(name, "config.json")
    return path is not None and read_json_object(path).get("model_type") in _KINDS


def _load_transformers(name: str, config: dict[str, Any]) -> tuple[Any, Callable[..., Any]]:
    """The model in float32, and its tokenizer."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoTokenizer

    kind = config.get("model_type")
    if kind not in _KINDS:
        raise ValueError(f"{name!r} is a {kind!r}; image and text meet in models of the kinds {', '.join(_KINDS)}")
    check_folder(name)
    cls: Any = MODEL_MAPPING[CONFIG_MAPPING[kind]]
    try:
        with quiet():
            model, found = cls.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers and the hub raise errors of many types
        raise ValueError(f"{name!r} cannot be read: {one_line(error)}") from error
    refuse_misfits(repr(name), found["missing_keys"], [], misshapen=found["mismatched_keys"])
    return model, tokenizer
