"""Linear layers of the embedded tokenizer by oneDNN against MKL, in paired rounds: python benchmarks/onednn.py"""

from __future__ import annotations

import statistics
import time

import torch

from uniflow import Tokenizer
from uniflow.layers.cpu import onednn_is_faster, use_onednn

ROUNDS = 9
CASES = ((64, 16), (224, 2))  # size in pixels, images in a batch


@torch.inference_mode()
def ratios(plain: Tokenizer, fast: Tokenizer, method: str, images: torch.Tensor) -> list[float]:
    """Processor time of `fast` over that of `plain`, once a round."""
    measured = []
    for _ in range(1 + ROUNDS):  # the first one warms up
        times = []
        for tokenizer in (plain, fast):
            begin = time.process_time()
            getattr(tokenizer, method)(images)
            times.append(time.process_time() - begin)
        measured.append(times[1] / times[0])
    return measured[1:]


def main() -> None:
    """Print the median ratio and its range for each case."""
    torch.set_num_threads(1)
    plain, fast = (Tokenizer.from_pretrained("embedded") for _ in range(2))
    use_onednn(fast)
    print(f"{torch.backends.cpu.get_cpu_capability()}, used by default: {onednn_is_faster()}")
    for size, batch in CASES:
        images = torch.rand(batch, 3, size, size)
        for method in ("encode", "reconstruct"):
            found = ratios(plain, fast, method, images)
            print(
                f"{method} {batch} x {size} px: onednn / MKL {statistics.median(found):.2f} "
                f"[{min(found):.2f}, {max(found):.2f}]"
            )


if __name__ == "__main__":
    main()
