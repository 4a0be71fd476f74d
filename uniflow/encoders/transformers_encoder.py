"""Vision towers of Hugging Face transformers as encoders, those inside multimodal models included."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniflow.core.numbers import FiniteFloat, PositiveFloat, PositiveInt
from uniflow.encoders.base import EncoderOutput, Tune, VisionEncoder, set_trainable
from uniflow.encoders.lora import lora_arguments
from uniflow.encoders.transformers_files import read_config, read_normalization, read_tower, triple
from uniflow.encoders.transformers_towers import build_tower, plain_config, tower_config, tower_spec

OLDEST = (5, 20)  # module names and registries of earlier versions differ


class TransformersEncoder(VisionEncoder):
    """A vision tower of Hugging Face transformers, cut after its last block: final norm, pooling, head and patch merger
    are removed, dropout and drop-path are off.

    Towers of CLIP, SigLIP, SigLIP 2, DINOv2 (with and without registers), DINOv3, InternViT (as `internvl_vision`) and
    Qwen2-VL, Qwen2.5-VL and Qwen3-VL, alone or inside a model that holds one as its `vision_config`, such as LLaVA.
    They are transformers' own classes: no code that comes with a model is run, and nothing is unpickled. Only the
    tower is built, and only its tensors are read. Images of any height and width that are multiples of the patch size
    pass; the tower resamples its position embedding as transformers does.

    Args:
        name: hub id, such as `openai/clip-vit-large-patch14`, or a local directory with `config.json`.
        weights: `pretrained` (from that directory, the hub or its local cache; safetensors only), the path of a
            safetensors file in transformers' key format, or null for random weights, for which nothing is fetched.
        tune: what is trained: `full`, `frozen`, a number k for the last k blocks only, or `lora` for low-rank adapters
            in all blocks, which are merged into the weights when the tokenizer is saved.
        gradient_checkpointing: recompute each block's activations in the backward pass, to save memory.
        config: content of a `config.json` to use instead of that of `name`. The tower's is recorded in `init_args`, so
            that a saved tokenizer is rebuilt without file and network.
        mean: per-channel mean (R, G, B) of the [0, 1] pixels, instead of that of the model's preprocessor; recorded.
        std: per-channel standard deviation (R, G, B), instead of that of the model's preprocessor; recorded.
        lora_rank: with `tune` `lora`, the rank of the adapters; null is 16.
        lora_alpha: with `tune` `lora`, the adapters are scaled by this over their rank; null is the rank.
        lora_targets: with `tune` `lora`, last names of the linear layers that get adapters; null is all.

    Raises:
        ValueError: if config or weights cannot be read, the model has no tower of a known family, or they do not fit.
        ImportError: if transformers is not installed, or too old; with `tune` `lora`, if peft is not installed.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = "pretrained",
        tune: Tune = "full",
        gradient_checkpointing: bool = False,
        config: dict[str, Any] | None = None,
        mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None,
        std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None,
        lora_rank: PositiveInt | None = None,
        lora_alpha: PositiveFloat | None = None,
        lora_targets: list[str] | None = None,
    ) -> None:
        super().__init__()
        lora = lora_arguments(tune, lora_rank, lora_alpha, lora_targets)
        self.record_resolved(**lora)  # as they are today, in case a default changes
        _require_transformers()
        # If the config is given, and no weights are to be fetched, `name` is only a name.
        name, offline = str(name), weights is None or (config is not None and weights != "pretrained")
        if config is None:
            tower, self._family = tower_config(read_config(name, offline), repr(name))
        else:
            tower, self._family = tower_config(config, "config")
        if mean is None or std is None:
            defaults = read_normalization(name, offline) or (self._family.mean, self._family.std)
            mean, std = mean or defaults[0], std or defaults[1]
        # Before the model: missing weights show sooner than a large tower is built.
        tensors = None if weights is None else read_tower(name, weights, self._family.patch_embed)
        source = name if weights in (None, "pretrained") else str(weights)
        self.model = build_tower(tower, self._family, tensors, repr(source))
        self.spec = tower_spec(tower, self._family, len(self.blocks), triple(mean, "mean"), triple(std, "std"))
        self.record_resolved(config=plain_config(tower), mean=self.spec.mean, std=self.spec.std)
        set_trainable(self.model, self.blocks, tune, **lora)
        self.set_gradient_checkpointing(gradient_checkpointing)

    @property
    def base_model(self) -> str | None:
        name = self.init_args.get("name")
        on_hub = self.init_args.get("weights") == "pretrained" and name is not None and not Path(name).exists()
        return str(name) if on_hub else None

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        return self.model.get_submodule(self._family.blocks)

    def set_gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass (less memory, same loss), or keep them.

        transformers does so in training mode only.
        """
        # Not through transformers' public switch, which makes the inputs of some towers require a gradient.
        self.model._set_gradient_checkpointing(enable, partial(checkpoint, use_reentrant=False))

    def forward(self, images: Tensor) -> EncoderOutput:
        # Frozen blocks in front build no graph, since nothing before the first trained parameter requires a gradient.
        pixels, patch_size = self.normalize(images), self.spec.patch_size
        grid = (images.shape[-2] // patch_size, images.shape[-1] // patch_size)
        embeddings, *states = self._family.run(self.model, pixels, patch_size)  # the first enters the first block
        prefix = self.spec.num_prefix_tokens
        return EncoderOutput(
            tuple(state[:, prefix:] for state in states),
            tuple(state[:, :prefix] for state in states),
            grid,
            embeddings[:, prefix:],
        )


def _require_transformers() -> None:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("TransformersEncoder needs transformers: pip install uniflow[transformers]") from error
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"TransformersEncoder needs transformers {oldest} or newer, this is {transformers.__version__}: "
            "pip install -U uniflow[transformers]"
        )
