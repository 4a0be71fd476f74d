"""Put back: a tokenizer's student takes the place of the vision tower that it came from, inside a multimodal model.

Nothing is trained. If the student kept the knowledge of its teacher, the model answers as before.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from uniflow.core.specs import EncoderSpec
from uniflow.encoders import TransformersEncoder, VisionEncoder
from uniflow.encoders.transformers_towers import (
    Family,
    plain_config,
    run_naflex,
    run_packed,
    tower_config,
    tower_spec,
)
from uniflow.tokenizer import Tokenizer

# Settings of a tower's config that change no hidden state.
_WITHOUT_EFFECT = ("initializer_range", "initializer_factor", "layer_scale_init_value", "image_size")
# Tensors of a tower that no hidden state depends on, and that encoders leave out.
_UNREAD = ("embeddings.mask_token", "embeddings.position_ids")
# Families whose `last_hidden_state` has passed a norm -> its name.
_LAST_NORM = {
    "siglip_vision_model": "post_layernorm",
    "dinov2": "layernorm",
    "dinov2_with_registers": "layernorm",
    "dinov3_vit": "norm",
    "internvl_vision": "layernorm",
}


@dataclass
class PutBack:
    """A model whose vision tower is the student; as a context manager, the teacher is back at its end.

    Attributes:
        parent: the module that holds the tower.
        name: the tower's name in it.
        teacher: the model's own tower.
        student: what stands in its place.
    """

    parent: nn.Module
    name: str
    teacher: nn.Module
    student: nn.Module

    def insert(self) -> None:
        """Let the model see with the student."""
        setattr(self.parent, self.name, self.student)

    def restore(self) -> None:
        """Let the model see with its own tower, which has not been touched."""
        setattr(self.parent, self.name, self.teacher)

    def __enter__(self) -> Self:
        self.insert()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


class StudentTower(nn.Module):
    """An encoder behind the interface of a transformers vision tower.

    Args:
        encoder: gives the hidden states.
        last_norm: what the tower does to its last hidden state before it returns it as `last_hidden_state`.
        config: of the tower in whose place it stands.
    """

    def __init__(self, encoder: VisionEncoder, last_norm: nn.Module, config: Any) -> None:
        super().__init__()
        self.encoder, self.last_norm, self.config = encoder, last_norm, config

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """Hidden states of `pixel_values` (B, 3, H, W), normalised by the model's processor.

        Options, such as the layers to keep, are left to the caller: all hidden states are returned.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        mean, std = (
            torch.tensor(values, device=pixel_values.device).view(3, 1, 1)
            for values in (self.encoder.spec.mean, self.encoder.spec.std)
        )
        output = self.encoder(pixel_values.float() * std + mean)  # the encoder normalises by itself
        pairs = zip(output.prefix_tokens, output.hidden_states, strict=True)
        states = [torch.cat(pair, dim=1) for pair in pairs]
        # Encoders do not give the prefix tokens in front of the first block; `put_back` has refused who reads them.
        first = output.embeddings if output.embeddings is not None else states[0]
        return BaseModelOutputWithPooling(last_hidden_state=self.last_norm(states[-1]), hidden_states=(first, *states))


def put_back(model: Any, tokenizer: Tokenizer | VisionEncoder) -> PutBack:
    """Let a multimodal model of transformers see with a tokenizer's encoder instead of its own vision tower.

    The model's own code runs as before: it chooses the layer, merges patches and projects. What comes after the last
    block of the tower (norm, pooling, Qwen's merger) stays the teacher's.

    Args:
        model: such as `InternVLForConditionalGeneration`, `LlavaOnevisionForConditionalGeneration` or
            `Qwen2_5_VLForConditionalGeneration`, of transformers' own classes.
        tokenizer: the tokenizer, or its encoder; copied in the type and to the device of the tower.

    Returns:
        The swap, done already; `with put_back(model, tokenizer): ...` or `.restore()` undoes it.

    Raises:
        ValueError: if the model has no tower of a known family, or the encoder does not have its architecture.
    """
    encoder = tokenizer.encoder if isinstance(tokenizer, Tokenizer) else tokenizer
    config, family = tower_config(model.config.to_dict(), type(model).__name__)
    path, tower = _find_tower(model, config.model_type)
    weight = next(tower.parameters())
    if isinstance(encoder, TransformersEncoder):
        student = _same_class(encoder, tower, config, family)
    else:
        student = _behind_interface(encoder, tower, config, family, model)
    student = student.to(device=weight.device, dtype=weight.dtype).requires_grad_(False).train(tower.training)
    parent, _, name = path.rpartition(".")
    swap = PutBack(model.get_submodule(parent), name, tower, student)
    swap.insert()
    return swap


def check_normalization(processor: Any, spec: EncoderSpec) -> None:
    """Refuse a processor that normalises pixels in another way than the encoder expects.

    Args:
        processor: of the multimodal model, or its image processor.
        spec: of the encoder.

    Raises:
        ValueError: naming both.
    """
    images = getattr(processor, "image_processor", processor)
    for name, wanted in (("image_mean", spec.mean), ("image_std", spec.std)):
        given = getattr(images, name, None)
        if given is None or max(abs(a - b) for a, b in zip(given, wanted, strict=True)) > 1e-3:
            shown = None if given is None else list(given)
            raise ValueError(
                f"the model's processor has {name} {shown}, the student's encoder expects {list(wanted)}: "
                "they do not see the same pixels, so the student did not come from this model's tower"
            )


def _find_tower(model: nn.Module, model_type: str) -> tuple[str, nn.Module]:
    for name, module in model.named_modules():
        if name and getattr(getattr(module, "config", None), "model_type", None) == model_type:
            return name, module  # the outermost: a tower's parts share its config
    raise ValueError(f"{type(model).__name__} holds no module of its vision tower's type {model_type!r}")


def _same_class(encoder: TransformersEncoder, tower: nn.Module, config: Any, family: Family) -> nn.Module:
    """A copy of the tower with the weights of a student of the same transformers class."""
    if type(encoder.model) is not type(tower):
        theirs, ours = type(tower).__name__, type(encoder.model).__name__
        raise ValueError(f"put back: the model's tower is a {theirs}, the student a {ours}: it did not come from it")
    given, wanted = plain_config(encoder.model.config), plain_config(config)
    for key in sorted(given.keys() & wanted.keys() - set(_WITHOUT_EFFECT)):
        if given[key] != wanted[key]:
            raise ValueError(
                f"put back: the student's {key} is {given[key]}, the model's tower has {wanted[key]}: "
                "it did not come from this model's tower"
            )
    weights = encoder.model.state_dict()
    for name, value in tower.state_dict().items():
        if name in weights and weights[name].shape != value.shape:
            raise ValueError(
                f"put back: the student's {name} is {tuple(weights[name].shape)}, "
                f"the model's tower needs {tuple(value.shape)}"
            )
    student = copy.deepcopy(tower)
    missing, unexpected = student.load_state_dict(weights, strict=False)
    missing = [key for key in missing if key.partition(".")[0] not in family.behind and key not in _UNREAD]
    if missing or unexpected:
        odd = (missing + unexpected)[0]
        whose = "the student lacks it" if missing else "the model's tower has none"
        raise ValueError(f"put back: the student does not fit the model's tower: {odd} ({whose})")
    return student


def _behind_interface(
    encoder: VisionEncoder, tower: nn.Module, config: Any, family: Family, model: Any
) -> StudentTower:
    """Any other encoder of the tower's geometry, behind the tower's interface."""
    if family.run in (run_packed, run_naflex):
        raise ValueError(
            f"put back: a {config.model_type!r} takes packed patches, which only a student that is a "
            f"TransformersEncoder does, not a {type(encoder).__name__}"
        )
    spec = tower_spec(config, family, len(list(tower.get_submodule(family.blocks).children())), family.mean, family.std)
    for name in ("embed_dim", "patch_size", "num_layers", "num_prefix_tokens"):
        given, wanted = getattr(encoder.spec, name), getattr(spec, name)
        if given != wanted:
            raise ValueError(
                f"put back: the student's {name} is {given}, the model's tower has {wanted}: "
                "it did not come from this model's tower"
            )
    layers = getattr(model.config, "vision_feature_layer", -1)
    layers = layers if isinstance(layers, list | tuple) else [layers]
    if spec.num_prefix_tokens and any(layer in (0, -spec.num_layers - 1) for layer in layers):
        raise ValueError(
            f"put back: the model reads the embeddings before the first block (vision_feature_layer {layers}), "
            f"which a {type(encoder).__name__} does not give with class token"
        )
    norm = getattr(tower, _LAST_NORM.get(config.model_type, ""), nn.Identity())
    return StudentTower(copy.deepcopy(encoder), copy.deepcopy(norm), config)
