"""A segmentation head in one file: two convolutions on the last feature map."""

from torch import Tensor, nn

from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads import SegmentationHead


class ConvMaskHead(SegmentationHead):
    """Logits from the neighbourhood of each patch.

    Args:
        spec: of the features.
        num_classes: classes, from 0 on.
        width: channels between the convolutions.
    """

    def __init__(self, spec: FeatureSpec, num_classes: int, width: int = 32) -> None:
        super().__init__(spec, num_classes)
        inner = nn.Conv2d(spec.embed_dim, width, 3, padding=1)
        self.convolve = nn.Sequential(inner, nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def values(self, features: EncoderOutput) -> Tensor:
        return self.convolve(features.feature_map())  # any resolution: it is resized to the mask's
