"""Images of any size, and what decoding a large one takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_fixtures import REPOSITORY

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.decoders import PatchFlowDecoder
from uniflow.encoders import SceneViT


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    encoder = SceneViT(weights=None, depth=1, embed_dim=32, num_heads=1, patch_size=16)
    bottleneck = MLPBottleneck(encoder.spec, channels=4)
    decoder = PatchFlowDecoder(
        bottleneck.spec, width=32, num_heads=1, global_depth=1, flow_depth=1, prediction="data", start="zero"
    )
    return Tokenizer(encoder, bottleneck, decoder).eval().requires_grad_(False)


def check(tokenizer, height, width):
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    latents = tokenizer.encode(images)
    grid = (-(-height // 16), -(-width // 16))
    assert latents.shape == (1, 4, *grid)
    assert latents.isfinite().all()
    decoded = tokenizer.decode(latents, tile=16)
    assert decoded.shape == (1, 3, 16 * grid[0], 16 * grid[1])
    assert decoded.isfinite().all()
    return images


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 37), (16, 1), (17, 15), (224, 224), (225, 333), (64, 1024), (512, 512)], ids=str
)
def test_any_size(tokenizer, height, width):
    images = check(tokenizer, height, width)
    assert tokenizer.reconstruct(images).shape == images.shape


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (1080, 1920), (2048, 2048), (2047, 1365)], ids=str)
def test_large_sizes(tokenizer, height, width):
    check(tokenizer, height, width)


def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch(tokenizer):
    images = torch.rand(2, 3, 40, 56)
    together, alone = tokenizer.encode(images), tokenizer.encode(images[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


MEMORY = """
import re, torch
from uniflow.decoders import PatchFlowDecoder
from uniflow.core.specs import LatentSpec
from uniflow.tokenizer.tiling import decode_tiled

torch.set_num_threads(1)
decoder = PatchFlowDecoder(LatentSpec(4, 16), width=512, num_heads=1, global_depth=0, flow_depth=1, prediction="data")
latents = torch.zeros(1, 4, 64, 64)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

with torch.inference_mode():
    decode_tiled(decoder, latents[..., :4, :4], tile=4)
    start = peak()
    decode_tiled(decoder, latents, tile=8)
    tiled = peak()
    decoder.decode(latents)
print(tiled - start, peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from Linux's /proc")
def test_tiles_bound_the_memory():
    """Peaks in a fresh process, in MiB, of decoding 1024 x 1024 pixels by tiles and, after that, at once."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    tiled, whole = map(float, run.stdout.split())
    assert 12 < tiled < 0.6 * whole  # noise, picture and its sum alone are 12 MiB each, tiles or not
