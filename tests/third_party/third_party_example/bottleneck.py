from torch import Tensor, nn

from uniflow import EncoderSpec, LatentSpec
from uniflow.bottleneck import Bottleneck
from uniflow.encoders import EncoderOutput


class ConvBottleneck(Bottleneck):
    """A convolution over the last hidden state, and a loss that keeps the latents small."""

    def __init__(self, encoder: EncoderSpec, channels: int = 16, penalty: float = 1e-3) -> None:
        super().__init__()
        self.spec = LatentSpec(channels=channels, patch_size=encoder.patch_size)
        self.penalty = penalty
        self.project = nn.Conv2d(encoder.embed_dim, channels, kernel_size=3, padding=1)

    def forward(self, output: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        latents = self.project(output.feature_map())
        return latents, {"latent_size": self.penalty * latents.square().mean()}
