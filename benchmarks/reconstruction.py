"""A whole reconstruction (encode, one-step decode) at the size of the paper's public release, on one CPU thread.

448 px, InternViT-300M, 452.6 M parameters, 1049 GFLOP, random weights. Against the same network in float32 with
attention written out, in eager mode, as PyTorch computes it by default.

    python benchmarks/reconstruction.py [--rounds 3] [--tiny]
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import arguments, emit, interleaved, measurement, one_quiet_thread
from uniflow import Tokenizer
from uniflow.layers.cpu import fuse_attention, has_slow_bfloat16, use_onednn
from uniflow.tokenizer.official import FIXED, official_parts

RELEASED = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "latent_ch": 64,
    "global_blocks_depth": 6,
    "num_decoder_layers": 12,
    "num_sampling_steps": "1",
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "image_size": 56,
    "global_blocks_depth": 1,
    "num_decoder_layers": 2,
}
BASELINE = "float32, attention written out, eager"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    parser = arguments(__doc__, rounds=3)
    options = parser.parse_args(argv)
    one_quiet_thread()
    torch.manual_seed(0)
    config = {**FIXED, **RELEASED, **(TINY if options.tiny else {})}
    plain = Tokenizer(*official_parts(config)).eval().requires_grad_(False)
    shake(plain)
    shared = {id(parameter): parameter for parameter in plain.parameters()}
    fused, onednn = (copy.deepcopy(plain, dict(shared)) for _ in range(2))
    fuse_attention(plain, False)
    use_onednn(onednn)
    images = torch.rand(1, 3, config["image_size"], config["image_size"])
    noise = torch.randn_like(images)
    found: dict[str, torch.Tensor] = {}

    def reconstruct(name: str, tokenizer: Tokenizer) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode():
                found[name] = tokenizer.reconstruct(images, noise=noise).float()

        return call

    candidates = {
        BASELINE: plain,
        "reconstruction, float32, fused attention": fused,
        "reconstruction, float32, fused attention, oneDNN": onednn,
    }
    if not has_slow_bfloat16():
        half = copy.deepcopy(plain).to(torch.bfloat16)
        fuse_attention(half, True)
        candidates["reconstruction, bfloat16, fused attention"] = half
    targets = {
        "reconstruction, float32, fused attention, oneDNN": 0.80,
        "reconstruction, bfloat16, fused attention": 0.60,
    }
    calls = {name: reconstruct(name, tokenizer) for name, tokenizer in candidates.items()}
    # A pass at the real size takes seconds: no first call weighs anything.
    times = interleaved(calls, rounds=options.rounds, warmup=int(options.tiny))
    for name in list(candidates)[1:]:
        difference = float((found[name] - found[BASELINE]).abs().max())
        more = {"largest_difference": float(f"{difference:.2g}")}
        emit(measurement(name, times[name], times[BASELINE], against=BASELINE, target=targets.get(name), **more))
    return 0


def shake(tokenizer: Tokenizer) -> None:
    """Weights where the untrained network has zeros, which would hide what a change of arithmetic does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)


if __name__ == "__main__":
    sys.exit(main())
