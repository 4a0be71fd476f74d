"""Any timm ViT as an encoder, through one path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, ClassVar, Literal, get_args

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from uniflow.core.numbers import PositiveFloat, PositiveInt
from uniflow.core.specs import EncoderSpec
from uniflow.encoders.base import EncoderOutput, Tune, VisionEncoder, set_trainable
from uniflow.encoders.loading import load_timm_state, read_weights
from uniflow.encoders.lora import lora_arguments

Activation = Literal["timm", "gelu", "gelu_tanh", "quick_gelu"]


class TimmEncoder(VisionEncoder):
    """A timm Vision Transformer cut after its last block: final norm, pooling and head are removed, drop-path is off.

    Mean, standard deviation, patch size and image size come from timm. Images of any height and width that are
    multiples of the patch size pass; learned position embeddings are resampled (bicubic) to their grid.

    Args:
        name: timm model name, with the tag of its weights, such as `vit_base_patch16_224.augreg_in21k`.
        weights: `pretrained` (timm's, from the Hugging Face hub or its local cache), the path of a safetensors file in
            timm's key format, or null for random weights.
        tune: what is trained: `full`, `frozen`, a number k for the last k blocks only, or `lora` for low-rank adapters
            in all blocks, which are merged into the weights when the tokenizer is saved.
        gradient_checkpointing: recompute each block's activations in the backward pass, to save memory.
        pos_embed_antialias: antialias when the position embedding is resampled (to a larger grid it is then another
            cubic kernel, a = -0.5 instead of -0.75). Null is what the reference of the model's family does; for a model
            of no family what timm does, true.
        activation: activation function of the blocks' MLPs; `timm` is that of timm's model, `gelu_tanh` the tanh
            approximation of GELU. Null is what the reference of the model's family has; for a model of no family that
            of timm's.
        depth: number of blocks instead of the variant's; like the next five only with weights null or a file.
        embed_dim: channels instead of the variant's.
        num_heads: attention heads instead of the variant's.
        patch_size: side of a patch in pixels instead of the variant's.
        image_size: side in pixels of the images that the position embedding is made for, instead of the variant's.
        mlp_ratio: hidden channels of a block's MLP over `embed_dim`, instead of the variant's.
        lora_rank: with `tune` `lora`, the rank of the adapters; null is 16.
        lora_alpha: with `tune` `lora`, the adapters are scaled by this over their rank; null is the rank.
        lora_targets: with `tune` `lora`, last names of the linear layers that get adapters; null is all.

    Raises:
        ValueError: for an unknown name, a model that is not a ViT, sizes that do not go together, or weights that
            cannot be read or fetched, or do not fit.
        ImportError: with `tune` `lora`, if peft is not installed.
    """

    # More arguments of `timm.create_model`, for a subclass that replaces some of timm's modules.
    timm_arguments: ClassVar[dict[str, Any]] = {}
    earlier_defaults: ClassVar[Mapping[str, Any]] = {"pos_embed_antialias": True, "activation": "timm"}

    def __init__(
        self,
        name: str,
        weights: str | None = "pretrained",
        tune: Tune = "full",
        gradient_checkpointing: bool = False,
        pos_embed_antialias: bool | None = None,
        activation: Activation | None = None,
        depth: PositiveInt | None = None,
        embed_dim: PositiveInt | None = None,
        num_heads: PositiveInt | None = None,
        patch_size: PositiveInt | None = None,
        image_size: PositiveInt | None = None,
        mlp_ratio: PositiveFloat | None = None,
        lora_rank: PositiveInt | None = None,
        lora_alpha: PositiveFloat | None = None,
        lora_targets: list[str] | None = None,
    ) -> None:
        super().__init__()
        lora = lora_arguments(tune, lora_rank, lora_alpha, lora_targets)
        reference = self.reference_defaults(name)
        antialias = reference.get("pos_embed_antialias", True) if pos_embed_antialias is None else pos_embed_antialias
        activation = reference.get("activation", "timm") if activation is None else activation
        # As they are today, in case a default changes.
        self.record_resolved(pos_embed_antialias=antialias, activation=activation, **lora)
        given = {
            "depth": depth,
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "patch_size": patch_size,
            "img_size": image_size,
            "mlp_ratio": mlp_ratio,
        }
        sizes = {key: value for key, value in given.items() if value is not None}
        if weights == "pretrained" and sizes:
            raise ValueError(
                f"the pretrained weights of {name!r} fit its own size only: "
                f"{', '.join(sizes).replace('img_size', 'image_size')} needs weights null or a safetensors file"
            )
        _check_name(name)
        state = read_weights(name, weights)  # before the model: missing weights show sooner than a large ViT is built
        self.model = _create_vit(name, sizes, _activation(activation) | self.timm_arguments)
        self.spec = _spec(self.model, image_size)
        if not antialias:
            _switch_off_antialiasing(self.model, name)
        if state is not None:
            load_timm_state(self.model, state, repr(str(weights)), antialias)
        if lora:
            _call_linear_layers(self.model)
        set_trainable(self.model, self.blocks, tune, **lora)
        self.set_gradient_checkpointing(gradient_checkpointing)

    @classmethod
    def reference_defaults(cls, name: str) -> dict[str, Any]:
        """What null means in the family of timm's model `name`: argument -> value, where it differs from timm's."""
        return {}

    @property
    def base_model(self) -> str | None:
        """Hub name of timm's weights. A subclass for which `pretrained` means other weights overrides it."""
        return self.model.pretrained_cfg.get("hf_hub_id") if self.init_args.get("weights") == "pretrained" else None

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        return self.model.blocks

    def set_gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass (less memory, same loss), or keep them."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, images: Tensor) -> EncoderOutput:
        # Frozen blocks in front build no graph, since nothing before the first trained parameter requires a gradient.
        pixels = self.normalize(images)
        grid = (images.shape[-2] // self.spec.patch_size, images.shape[-1] // self.spec.patch_size)
        # Models without prefix tokens return bare tensors.
        has_prefix = self.spec.num_prefix_tokens > 0
        with first_output(self.model.patch_embed) as embedded:
            states = self.model.forward_intermediates(
                pixels, output_fmt="NLC", norm=False, return_prefix_tokens=has_prefix, intermediates_only=True
            )
        if not has_prefix:
            states = [(hidden, hidden[:, :0]) for hidden in states]
        hidden_states, prefix_tokens = zip(*states, strict=True)
        # A grid of tokens, or already a list of them.
        return EncoderOutput(hidden_states, prefix_tokens, grid, embedded[0].flatten(1, -2))


@contextmanager
def first_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which what `module` returns is appended at each call inside the context."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def _check_name(name: str) -> None:
    if name not in timm.list_models() and name not in timm.list_pretrained():
        near = difflib.get_close_matches(name, timm.list_pretrained(), n=4, cutoff=0.4)
        raise ValueError(f"timm has no model {name!r}; near names: {', '.join(near) or 'none'}")


def _activation(activation: str) -> dict[str, Any]:
    """timm's argument for it; none if timm's model decides."""
    if activation not in get_args(Activation):
        raise ValueError(f"activation must be one of {', '.join(get_args(Activation))} or null, not {activation!r}")
    return {} if activation == "timm" else {"act_layer": activation}


def _create_vit(name: str, sizes: Mapping[str, float], further: dict[str, Any]) -> Any:
    """The timm model with random weights, without what comes after its last block."""
    try:
        arguments: dict[str, Any] = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True, **sizes, **further}
        model: Any = timm.create_model(name, **arguments)
        model.prune_intermediate_layers(len(model.blocks), prune_norm=True, prune_head=True)
    except (TypeError, AttributeError, AssertionError, RuntimeError) as error:
        what = f" of size {sizes}" if sizes else ""
        reason = str(error).replace("act_layer", "activation")
        raise ValueError(f"timm's {name!r} cannot be built as a ViT encoder{what}: {reason}") from error
    if model.patch_embed.patch_size[0] != model.patch_embed.patch_size[1]:
        raise ValueError(f"{name!r} has patches that are not square: {model.patch_embed.patch_size}")
    return model


def _spec(model: Any, image_size: PositiveInt | None) -> EncoderSpec:
    return EncoderSpec(
        embed_dim=model.embed_dim,
        patch_size=model.patch_embed.patch_size[0],
        num_layers=len(model.blocks),
        num_prefix_tokens=model.num_prefix_tokens,
        image_size=image_size or model.pretrained_cfg["input_size"][-1],
        mean=tuple(model.pretrained_cfg["mean"]),
        std=tuple(model.pretrained_cfg["std"]),
    )


def _switch_off_antialiasing(model: Any, name: str) -> None:
    if not isinstance(model, VisionTransformer) or model.pos_embed is None:
        raise ValueError(f"pos_embed_antialias: {name!r} has no plain learned position embedding to resample")
    # A bound method, which deepcopy binds to the copy.
    model.__dict__["_pos_embed"] = MethodType(_pos_embed_without_antialias, model)


def _call_linear_layers(model: Any) -> None:
    """Make EVA's attention add its bias separately: otherwise it reads the weight of `qkv` and skips the adapter."""
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True


def _pos_embed_without_antialias(model: Any, x: Tensor) -> Tensor:
    """timm's `VisionTransformer._pos_embed` for (B, h, w, D) patches, with `antialias=False`."""
    prefix = [token.expand(x.shape[0], -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
    pos_embed = resample_abs_pos_embed(
        model.pos_embed,
        new_size=list(x.shape[1:3]),
        old_size=list(model.patch_embed.grid_size),
        num_prefix_tokens=0 if model.no_embed_class else model.num_prefix_tokens,
        antialias=False,
    )
    patches = x.flatten(1, 2)
    if model.no_embed_class:
        return torch.cat([*prefix, patches + pos_embed], dim=1)
    return torch.cat([*prefix, patches], dim=1) + pos_embed
