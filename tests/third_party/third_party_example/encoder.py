from safetensors.torch import load_file
from torch import Tensor, nn

from uniflow import EncoderSpec
from uniflow.encoders import EncoderOutput, VisionEncoder


class TokenMLP(VisionEncoder):
    """Residual layers on each patch, without attention."""

    def __init__(self, width: int = 64, depth: int = 4, weights: str | None = None) -> None:
        super().__init__()
        half = (0.5, 0.5, 0.5)
        self.spec = EncoderSpec(
            embed_dim=width, patch_size=8, num_layers=depth, num_prefix_tokens=0, image_size=64, mean=half, std=half
        )
        self.patches = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(depth))
        if weights is not None:  # a saved tokenizer is rebuilt with weights=None
            self.load_state_dict(load_file(weights))

    def forward(self, images: Tensor) -> EncoderOutput:
        patches = self.patches(self.normalize(images))  # (B, D, h, w)
        hidden, states = patches.flatten(2).transpose(1, 2), []
        for block in self.blocks:
            hidden = hidden + block(hidden).relu()
            states.append(hidden)
        no_prefix = tuple(state[:, :0] for state in states)
        return EncoderOutput(tuple(states), no_prefix, grid=(patches.shape[2], patches.shape[3]))
