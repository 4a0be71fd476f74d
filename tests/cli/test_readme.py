"""The code that the README shows is run."""

import re

import torch
from cli_fixtures import REPOSITORY
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.core.specs import LatentSpec
from uniflow.decoders import PixelDecoder

BLOCKS = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_three_lines_encode_and_decode(monkeypatch):
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec)
    tokenizer = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec))
    monkeypatch.setattr(Tokenizer, "from_pretrained", classmethod(lambda cls, path: tokenizer))
    names = {"images": torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)}
    exec(next(block for block in BLOCKS if "from_pretrained" in block), names)
    assert names["latents"].shape == (2, 64, 2, 3)
    assert names["images"].shape == (2, 3, 16, 24)


def test_a_decoder_of_ones_own_is_a_decoder():
    names = {}
    exec(next(block for block in BLOCKS if "class MyDecoder" in block), names)
    decoder = names["MyDecoder"](LatentSpec(channels=8, patch_size=4), width=16)
    assert isinstance(decoder, PixelDecoder)
    latents, images = torch.randn(2, 8, 3, 2), torch.rand(2, 3, 12, 8)
    sum(decoder.loss(latents, images).values()).backward()
    assert decoder.decode(latents).shape == images.shape
