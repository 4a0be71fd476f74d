"""Linear layers in full precision: under autocast, and beside others that are quantised."""

import torch
from torch import nn

from uniflow import Tokenizer
from uniflow.data.scenes import ScenesDataset
from uniflow.layers import ExactLinear
from uniflow.metrics import psnr


def test_it_is_a_linear_layer_that_autocast_leaves_alone():
    torch.manual_seed(0)
    plain = nn.Linear(5, 3)
    torch.manual_seed(0)
    exact, x = ExactLinear(5, 3), torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    exact.load_state_dict(plain.state_dict())
    whole = exact(x)
    assert torch.equal(whole, plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(x), whole)
        assert plain(x).dtype == torch.bfloat16
    assert exact(x.double()).dtype == torch.float64


def test_eight_bits_a_weight_cost_the_embedded_tokenizer_next_to_nothing():
    """What torchao's int8 weight-only quantisation does to every `nn.Linear`: a scale for each row."""
    scenes = ScenesDataset(seed=5, length=8, size=64)
    images = torch.stack([scenes[i]["image"] for i in range(8)])
    tokenizer, noise = Tokenizer.from_pretrained("embedded"), torch.randn(8, 3, 64, 64)

    def quality():
        return psnr(tokenizer.reconstruct(images, noise=noise), images / 255).mean()

    before = quality()
    linears = [module for module in tokenizer.modules() if isinstance(module, nn.Linear)]
    for layer in linears:
        scale = layer.weight.data.abs().amax(dim=1, keepdim=True) / 127
        layer.weight.data = (layer.weight.data / scale).round() * scale
    assert len(linears) > 20
    assert 0 < before - quality() < 0.1
