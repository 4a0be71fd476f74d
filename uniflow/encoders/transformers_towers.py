"""Vision towers of Hugging Face transformers: what differs between their families, how one is built, cut and run."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor, nn

from uniflow.core.errors import one_line
from uniflow.core.specs import EncoderSpec
from uniflow.encoders.loading import refuse_misfits

Triple = tuple[float, float, float]


def run_images(model: Any, pixels: Tensor, patch_size: int) -> Sequence[Tensor]:
    """Hidden states (B, P + N, D) of a tower that takes images (B, 3, H, W) and resamples its position embedding."""
    return model(pixels, output_hidden_states=True).hidden_states


def run_resizable(model: Any, pixels: Tensor, patch_size: int) -> Sequence[Tensor]:
    """As `run_images`, for towers that resample their position embedding only when asked to."""
    return model(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states


def run_naflex(model: Any, pixels: Tensor, patch_size: int) -> Sequence[Tensor]:
    """Hidden states (B, N, D) of a tower that takes flattened patches (B, N, p * p * 3) and their grid."""
    batch, rows, columns = pixels.shape[0], pixels.shape[2] // patch_size, pixels.shape[3] // patch_size
    patches = pixels.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    # Read on the host; all images of a batch have one size, so nothing is padded and nothing masked.
    shapes = torch.tensor([[rows, columns]] * batch, device="cpu")
    return model(patches, None, shapes, output_hidden_states=True).hidden_states


def run_packed(model: Any, pixels: Tensor, patch_size: int) -> Sequence[Tensor]:
    """Hidden states (B, N, D) of a Qwen-VL tower, which takes the patches of all images as one sequence.

    A still image is `temporal_patch_size` equal frames. With a merge size of 1 the sequence is row-major, but for the
    windows of Qwen2.5-VL.
    """
    from transformers import vision_utils

    config, batch = model.config, pixels.shape[0]
    rows, columns = pixels.shape[2] // patch_size, pixels.shape[3] // patch_size
    patches = pixels.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size)).permute(0, 2, 4, 1, 3, 5)
    frames = patches.unsqueeze(4).expand(-1, -1, -1, -1, config.temporal_patch_size, -1, -1)
    # The layout is worked out on the host, where the tower reads it, and only tables that it looks up are moved.
    grids = torch.tensor([[1, rows, columns]] * batch, device="cpu")
    layout = {"position_ids": vision_utils.get_vision_position_ids(grids, 1).to(pixels.device)}
    if hasattr(model, "num_grid_per_side"):  # learned position embedding beside the rotary one
        taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids, model.num_grid_per_side, model.interpolation_mode, model.interpolation_align_corners
        )
        layout |= {"interp_indices": taps.to(pixels.device), "interp_weights": weights.to(pixels.device)}
    output = model(frames.reshape(batch * rows * columns, -1), grids, output_hidden_states=True, **layout)
    states = [state.unflatten(0, (batch, -1)) for state in output.hidden_states]
    if hasattr(config, "window_size"):
        back = window_order(rows, columns, config.window_size // patch_size).argsort().to(pixels.device)
        states = [state[:, back] for state in states]
    return states


def window_order(rows: int, columns: int, side: int) -> Tensor:
    """Row-major indices (rows * columns,) of patches in the order window after window, row-major in each.

    Args:
        rows: rows of the patch grid.
        columns: its columns.
        side: patches on a side of a window; those at the right and lower edge are smaller.
    """
    row, column = torch.arange(rows, device="cpu") // side, torch.arange(columns, device="cpu") // side
    return (row[:, None] * columns + column).flatten().argsort(stable=True)


@dataclass(frozen=True)
class Family:
    """What the towers with one `model_type` have in common.

    Attributes:
        patch_embed: name of the patch embedding's weight; what stands before it in a file is the tower's prefix.
        blocks: name of the list of transformer blocks.
        behind: names of the modules after the last block, which hidden states do not need.
        class_tokens: tokens before the patch tokens, without registers.
        mean: per-channel mean of the pixels, where no file says it.
        std: per-channel standard deviation, where no file says it.
        run: (model, normalised pixels, patch size) -> input of the first block and output of every block.
        image_size: side in pixels to state if the tower takes images of any size and the config names none.
        model_class: module path of the class, where transformers' registry of models has none.
    """

    patch_embed: str
    blocks: str
    behind: tuple[str, ...]
    class_tokens: int
    mean: Triple
    std: Triple
    run: Callable[[Any, Tensor, int], Sequence[Tensor]]
    image_size: int = 448
    model_class: str | None = None


_OPENAI: tuple[Triple, Triple] = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
_IMAGENET: tuple[Triple, Triple] = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
_HALF: tuple[Triple, Triple] = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
_CLIP_LIKE = ("embeddings.patch_embedding.weight", "encoder.layers")
_DINOV2_LIKE = ("embeddings.patch_embeddings.projection.weight", "encoder.layer", ("layernorm",), 1, *_IMAGENET)
_QWEN_LIKE = ("patch_embed.proj.weight", "blocks", ("merger", "deepstack_merger_list"), 0)

# model_type of the vision config -> family.
FAMILIES: dict[str, Family] = {
    "clip_vision_model": Family(*_CLIP_LIKE, ("post_layernorm",), 1, *_OPENAI, run_resizable),
    "siglip_vision_model": Family(*_CLIP_LIKE, ("post_layernorm", "head"), 0, *_HALF, run_resizable),
    "siglip2_vision_model": Family(*_CLIP_LIKE, ("post_layernorm", "head"), 0, *_HALF, run_naflex),
    "dinov2": Family(*_DINOV2_LIKE, run_images),
    "dinov2_with_registers": Family(*_DINOV2_LIKE, run_images),
    "dinov3_vit": Family("embeddings.patch_embeddings.weight", "model.layer", ("norm",), 1, *_IMAGENET, run_images),
    "internvl_vision": Family(*_DINOV2_LIKE, run_images),
    "qwen2_vl_vision": Family(
        *_QWEN_LIKE,
        *_OPENAI,
        run_packed,
        model_class="transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel",
    ),
    "qwen2_5_vl_vision": Family(*_QWEN_LIKE, *_OPENAI, run_packed),
    "qwen3_vl_vision": Family(*_QWEN_LIKE, *_HALF, run_packed),
}

# Parameters and buffers of checkpoints that no hidden state depends on.
_UNUSED = ("embeddings.mask_token", "embeddings.position_ids")

# Options of configs: nothing is drawn at random, nothing is built after the blocks, and patches stay in reading order.
_SETTINGS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "projection_dropout": 0.0,
    "drop_path_rate": 0.0,
    "pos_embed_shift": None,
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,
    "vision_use_head": False,
    "use_mask_token": False,
    "deepstack_visual_indexes": [],
    "spatial_merge_size": 1,
}


def tower_config(config: Mapping[str, Any], source: str) -> tuple[Any, Family]:
    """The config of the vision tower in a model's config.

    Args:
        config: content of a config.json: of a vision model, or of a model that holds one under `vision_config`.
        source: where it comes from, for messages.

    Returns:
        transformers' config object, with `_SETTINGS`, and the family that it belongs to.

    Raises:
        ValueError: if transformers does not know the model, or it has no tower of a known family.
    """
    from transformers import CONFIG_MAPPING, __version__

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{source}: transformers {__version__} has no model_type {model_type!r}, and code that comes with a model "
            "is never run; look for the model in transformers' format (often named -hf)"
        )
    try:
        whole = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(dict(config)))
    except Exception as error:  # validators of configs raise many types
        raise ValueError(f"{source} is not a valid config: {one_line(error)}") from error
    tower = getattr(whole, "vision_config", None) or whole
    family = FAMILIES.get(tower.model_type)
    if family is None:
        raise ValueError(f"{source}: no encoder is made of a {tower.model_type!r}, only of {', '.join(FAMILIES)}")
    for key, value in _SETTINGS.items():
        if hasattr(tower, key):
            setattr(tower, key, value)
    return tower, family


def plain_config(config: Any) -> dict[str, Any]:
    """A tower's config as JSON types, without what every transformers config has and no tower reads."""
    from transformers import PretrainedConfig

    common = PretrainedConfig().to_dict().keys() - {"model_type"}
    return {key: value for key, value in config.to_dict().items() if key not in common}


def tower_spec(config: Any, family: Family, num_layers: int, mean: Triple, std: Triple) -> EncoderSpec:
    """What the encoder made of this tower gives.

    Raises:
        ValueError: if its patches or the images that it was pretrained on are not square.
    """
    patch_size = _side(config, "patch_size")
    if hasattr(config, "image_size"):
        image_size = _side(config, "image_size")
    else:  # a table of positions without a size in pixels
        positions = getattr(config, "num_position_embeddings", None) or getattr(config, "num_patches", None)
        image_size = patch_size * round(positions**0.5) if positions else family.image_size
    return EncoderSpec(
        # Qwen2-VL's hidden_size is that of its language model.
        embed_dim=getattr(config, "embed_dim", None) or config.hidden_size,
        patch_size=patch_size,
        num_layers=num_layers,
        num_prefix_tokens=family.class_tokens + getattr(config, "num_register_tokens", 0),
        image_size=image_size,
        mean=mean,
        std=std,
    )


def build_tower(config: Any, family: Family, tensors: dict[str, Tensor] | None, source: str) -> Any:
    """The tower in float32, cut after its last block, ready to train.

    Args:
        config: as `tower_config` gives it.
        family: likewise.
        tensors: in transformers' key format, without prefix; None for random weights.
        source: where they come from, for messages.

    Raises:
        ValueError: if the config describes no model that can be built, or naming the tensors that do not fit it.
    """

    def needed(key: str) -> bool:
        return key.partition(".")[0] not in family.behind and key not in _UNUSED

    report: dict[str, Any] = {}
    try:
        cls = _model_class(config, family)
        if tensors is None:
            model: Any = cls._from_config(config, dtype=torch.float32)
        else:
            model, report = _load(cls, config, {key: value for key, value in tensors.items() if needed(key)})
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, KeyError, AttributeError) as error:
        raise ValueError(f"{source}: its {config.model_type!r} cannot be built: {one_line(error)}") from error
    if report:
        missing, unexpected = filter(needed, report["missing_keys"]), report["unexpected_keys"]
        refuse_misfits(source, missing, unexpected, misshapen=report["mismatched_keys"])
    for name in family.behind:
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
    if hasattr(model, "use_head"):
        model.use_head = False  # some versions build the head even if the config says not to
    embeddings: Any = getattr(model, "embeddings", None)
    if getattr(embeddings, "mask_token", None) is not None:
        embeddings.mask_token = None
    return model.train()  # from_pretrained leaves it in evaluation mode, where nothing is checkpointed


def _model_class(config: Any, family: Family) -> Any:
    from transformers import MODEL_MAPPING

    if family.model_class is None:
        return MODEL_MAPPING[type(config)]
    module, _, name = family.model_class.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _load(cls: Any, config: Any, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """Model and report of transformers' own loader, which knows the key formats of its earlier versions."""
    with quiet():
        return cls.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused later, with what is missing
            output_loading_info=True,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no table of keys: what does not fit is reported as an error."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _side(config: Any, key: str) -> int:
    value = getattr(config, key)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ValueError(f"a {config.model_type!r} with {key} {value} cannot be an encoder here: it must be square")
    return sides.pop()
