import torch
from torch import Tensor, nn

from uniflow import LatentSpec
from uniflow.decoders import PixelDecoder


class PlainDecoder(PixelDecoder):
    """One hidden layer, and a transposed convolution to the pixels of each patch."""

    def __init__(self, latent: LatentSpec, width: int = 64) -> None:
        super().__init__()
        self.spec = latent
        self.hidden = nn.Conv2d(latent.channels, width, kernel_size=3, padding=1)
        self.pixels = nn.ConvTranspose2d(width, 3, kernel_size=latent.patch_size, stride=latent.patch_size)

    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        return {"l1": (self.decode(latents) - images).abs().mean()}

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,  # this one and the next two are for decoders that sample
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.pixels(self.hidden(latents).relu())
