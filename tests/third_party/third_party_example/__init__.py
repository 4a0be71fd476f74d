from third_party_example.bottleneck import ConvBottleneck
from third_party_example.data import Ramps
from third_party_example.decoder import PlainDecoder
from third_party_example.encoder import TokenMLP
from third_party_example.mask import ConvMaskHead
from third_party_example.task import MeanColorHead, MeanColorTask
from third_party_example.weighting import FirstLayers

__all__ = [
    "ConvBottleneck",
    "ConvMaskHead",
    "FirstLayers",
    "MeanColorHead",
    "MeanColorTask",
    "PlainDecoder",
    "Ramps",
    "TokenMLP",
]
