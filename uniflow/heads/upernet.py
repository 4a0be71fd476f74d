"""UPerNet's decode head for semantic segmentation."""

from __future__ import annotations

from torch import Tensor

from uniflow.core.numbers import Int2, NonNegativeFloat, NonNegativeInt, PositiveInt
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.four_maps import FourScales, transformers_module
from uniflow.heads.segmentation import SegmentationHead


class UPerNet(SegmentationHead):
    """The decode head of UPerNet (arXiv 1807.10221) of transformers, on a pyramid of a ViT's feature maps.

    A source of one map gives all four scales; give 4 layers for BEiT's setting.

    Args:
        spec: of the features, with 1 or 4 layers.
        num_classes: classes, from 0 on.
        width: channels of the decoder.
        ignore_index: label of pixels that count neither in the loss nor in the scores.
        weight: factor on the loss.

    Raises:
        ImportError: without transformers.
        ValueError: if there are not 1 or 4 layers, or `ignore_index` is one of the classes.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: Int2,
        width: PositiveInt = 512,
        ignore_index: NonNegativeInt = 255,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, num_classes, ignore_index, weight)
        self.pyramid = FourScales("UPerNet", spec.embed_dim, spec.num_layers)
        upernet = transformers_module("UPerNet", "upernet")
        config = upernet.UperNetConfig(hidden_size=width, num_labels=num_classes)
        self.decode = upernet.modeling_upernet.UperNetHead(config, [spec.embed_dim] * 4)

    def values(self, features: EncoderOutput) -> Tensor:
        if self.training and len(features.hidden_states[-1]) < 2:
            raise ValueError("UPerNet trains with 2 images a process and batch or more: it normalises one mean each")
        return self.decode(self.pyramid(features))
