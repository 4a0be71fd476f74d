"""Encoding and reconstructing on one CPU thread: number formats, oneDNN and ONNX against eager float32.

The embedded tokenizer at 64 px with batches of 1, 8 and 64, and DINOv2 ViT-S/14 with a light decoder (random weights)
at 224 px with batches of 1 and 8. int8 is weight-only, by torchao, and left out where that is not installed.
"psnr_to_baseline" is how far reconstructions are from the baseline's, in dB; 100 is equal.

    python benchmarks/inference.py [--rounds 3] [--tiny]
"""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import arguments, emit, interleaved, measurement, one_quiet_thread, significant
from benchmarks.models import Sizes
from benchmarks.reconstruction import shake
from uniflow import Tokenizer
from uniflow.layers.cpu import has_slow_bfloat16, use_onednn
from uniflow.metrics import psnr
from uniflow.tools.export import load_onnx, trace, write_onnx

BASELINE = "float32, eager"
Coder = Callable[[Tensor], Tensor]
Decoder = Callable[[Tensor, Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    options = arguments(__doc__, rounds=3).parse_args(argv)
    one_quiet_thread()
    embedded = Tokenizer.from_pretrained("embedded")
    sizes = Sizes(options.tiny)
    large = Tokenizer(*sizes.parts()).eval().requires_grad_(False)
    shake(large)
    compare("embedded, 64 px", embedded, 64, [1, 2] if options.tiny else [1, 8, 64], options.rounds)
    compare(f"DINOv2-S/14, {sizes.size} px", large, sizes.size, [1, 2] if options.tiny else [1, 8], options.rounds)
    return 0


def compare(name: str, tokenizer: Tokenizer, size: int, batches: Sequence[int], rounds: int) -> None:
    """Print what each way of running a tokenizer takes, and how far its images are from those of the baseline."""
    with tempfile.TemporaryDirectory() as folder:
        ways = {BASELINE: eager(tokenizer), "float32, oneDNN": onednn(tokenizer)}
        if not has_slow_bfloat16():
            ways["bfloat16, autocast"] = autocast(tokenizer)
        ways["ONNX Runtime"] = onnx(tokenizer, size, Path(folder))
        if (eight := int8(tokenizer)) is not None:
            ways["int8 weights"] = eight
        for batch in batches:
            run(f"{name}, batch {batch}", ways, torch.rand(batch, 3, size, size), rounds)


def run(name: str, ways: Mapping[str, tuple[Coder, Decoder]], images: Tensor, rounds: int) -> None:
    """Time encoding and decoding, each way in turn."""
    noise = torch.randn_like(images, memory_format=torch.contiguous_format)
    latents: dict[str, Tensor] = {}
    decoded: dict[str, Tensor] = {}

    def encode(way: str) -> Callable[[], None]:
        return lambda: latents.update({way: ways[way][0](images)})

    def decode(way: str) -> Callable[[], None]:
        return lambda: decoded.update({way: ways[way][1](latents[BASELINE], noise)})

    with torch.inference_mode():
        times = {"encode": interleaved({way: encode(way) for way in ways}, rounds=rounds)}
        times["decode"] = interleaved({way: decode(way) for way in ways}, rounds=rounds)
        for way in list(ways)[1:]:
            whole = ways[way][1](latents[way], noise).float()
            more = {"psnr_to_baseline": significant(float(psnr(whole, decoded[BASELINE]).mean()))}
            for operation, found in times.items():
                emit(measurement(f"{operation}, {name}: {way}", found[way], found[BASELINE], against=BASELINE, **more))


def eager(tokenizer: Tokenizer) -> tuple[Coder, Decoder]:
    """As it is."""
    return tokenizer.encode, lambda latents, noise: tokenizer.decode(latents, noise=noise)


def onednn(tokenizer: Tokenizer) -> tuple[Coder, Decoder]:
    """Linear layers by oneDNN."""
    fast = copy.deepcopy(tokenizer)
    use_onednn(fast)
    return eager(fast)


def autocast(tokenizer: Tokenizer) -> tuple[Coder, Decoder]:
    """Matrix products in bfloat16."""
    encode, decode = eager(tokenizer)
    half = torch.autocast("cpu", torch.bfloat16)
    return half(encode), half(decode)


def int8(tokenizer: Tokenizer) -> tuple[Coder, Decoder] | None:
    """Weights of 8 bits, activations in float32; None without torchao."""
    with contextlib.suppress(ImportError):
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        small = copy.deepcopy(tokenizer)
        quantize_(small, Int8WeightOnlyConfig())
        return eager(small)
    return None


def onnx(tokenizer: Tokenizer, size: int, folder: Path) -> tuple[Coder, Decoder]:
    """The programs that `uniflow export` writes."""
    programs = []
    for traced in trace(tokenizer, size=size):
        path = folder / f"{traced.name}.onnx"
        write_onnx(traced, path, opset=20)
        programs.append(load_onnx(path))
    encode, decode = programs
    return encode, decode


if __name__ == "__main__":
    sys.exit(main())
