"""How a tokenizer's training takes the hidden states of its frozen network from a cache."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from uniflow.bottleneck import Bottleneck
from uniflow.core.specs import EncoderOutput, EncoderSpec
from uniflow.core.tensors import state_hash
from uniflow.features.state_cache import StateCache, StatesNeeded
from uniflow.sharding.shard import full_state_dict, is_sharded
from uniflow.training.trainer import data_of, evaluation_mode


def states_to_keep(bottleneck: Bottleneck, spec: EncoderSpec, distilled: bool, prefix: bool) -> StatesNeeded:
    """What a training step uses of the frozen network.

    Args:
        bottleneck: which reads it if the encoder itself is frozen.
        spec: of the encoder.
        distilled: whether it is the teacher of an encoder that is trained.
        prefix: whether class and register tokens are compared.
    """
    blocks = range(spec.num_layers)
    if distilled:
        return StatesNeeded(tuple(blocks), prefix)
    read = bottleneck.layers_read
    return StatesNeeded((*blocks, spec.num_layers) if read is None else tuple(sorted({*read, blocks[-1]})))


class CachedStates:
    """Hidden states of a frozen network, from a cache or computed. All processes have to make it at the same time.

    Args:
        cache: where they are kept.
        trainer: about to train its first step.
        network: the frozen network.
        spec: of the encoder.
        needed: what is kept, see `states_to_keep`.

    Raises:
        ValueError: if the data draws new crops in every epoch, so that nothing in the cache would be used again.
    """

    def __init__(
        self, cache: StateCache, trainer: Trainer, network: nn.Module, spec: EncoderSpec, needed: StatesNeeded
    ) -> None:
        data = data_of(trainer)
        if not getattr(data, "repeats_samples", True):
            raise ValueError(
                f"state_cache: {type(data).__name__} has new training images in every epoch, so that no cached state "
                "would be used again; set data.crops_per_image, of Scenes data.fresh_epochs to false"
            )
        weights = full_state_dict(network)  # by all processes; empty on most if it is sharded
        own = state_hash(weights) if trainer.is_global_zero else None
        cache.identify(weights=trainer.strategy.broadcast(own), precision=str(trainer.precision))
        self.cache, self.trainer, self.network, self.spec, self.needed = cache, trainer, network, spec, needed
        self.sharded = is_sharded(network)

    def __call__(self, images: Tensor) -> EncoderOutput:
        """The hidden states of images (B, 3, H, W), as the network gives them in evaluation mode."""
        agree = self._any if self.sharded else bool
        return self.cache.encode(images, self._compute, self.spec, self.needed, agree)

    def _compute(self, images: Tensor) -> EncoderOutput:
        with evaluation_mode(self.network):
            return self.network(images)

    def _any(self, computes: bool) -> bool:
        flag = torch.tensor(float(computes), device=self.trainer.strategy.root_device)
        return bool(self.trainer.strategy.reduce(flag, reduce_op="max"))
