"""Malformed inputs, made from a seed: each must be accepted or refused with one line. `make fuzz`; exits 1 on a fault.

Nothing is trained: the cases stop at the parsed configuration, the loaded image, shard or tokenizer, the first answer.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

from benchmarks.fuzz import training, understanding
from benchmarks.fuzz.cases import ACCEPTED, FAULT, REFUSED, Case, hangs, judged


def main() -> int:
    """Run all cases and print the counts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="how often the random cases are drawn")
    parser.add_argument("--only", default="", help="run only the kinds whose name begins so")
    parser.add_argument("--show", action="store_true", help="print each case's outcome and what was said")
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    seconds: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, hangs)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, case in cases(random.Random(options.seed), options.repeats):
            kind = name.split()[0]
            if not kind.startswith(options.only):
                continue
            begin = time.perf_counter()
            outcome, text = judged(case)
            counts[kind, outcome] += 1
            seconds[kind] += time.perf_counter() - begin
            if outcome == FAULT or options.show:
                print(f"{outcome} {name} ({time.perf_counter() - begin:.1f} s): {text}", flush=True)
        os.chdir("/")
    for kind in sorted({kind for kind, _ in counts}):
        row = ", ".join(f"{counts[kind, outcome]} {outcome}" for outcome in (REFUSED, ACCEPTED, FAULT))
        print(f"{kind}: {row}, {seconds[kind]:.0f} s")
    faults = sum(number for (_, outcome), number in counts.items() if outcome == FAULT)
    print(f"{counts.total()} cases, {faults} faults")
    return 1 if faults else 0


def cases(draw: random.Random, repeats: int) -> Iterator[Case]:
    """All cases: a name whose first word is the kind, and a call that returns the outcome and its text."""
    yield from training.numbers()
    yield from understanding.fixed()
    for number in range(repeats):
        yield from training.drawn(draw, number)
        yield from understanding.drawn(draw, number)


if __name__ == "__main__":
    sys.exit(main())
