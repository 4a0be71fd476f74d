"""What the benchmarks share: interleaved times, the peak of live tensor bytes, and one JSON line a measurement.

A time is the processor time of this process (`time.process_time`), one thread: beside other busy processes it spreads
far less than the time of the clock. Candidates run in turn, round after round, and a ratio is the median of the rounds'
ratios, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile


@dataclass
class Times:
    """Seconds of one candidate, one number a round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def in_groups(self, size: int) -> Times:
        """Sums of `size` rounds each, for what does not happen in every round."""
        return Times(*([sum(own[i : i + size]) for i in range(0, len(own), size)] for own in (self.cpu, self.wall)))

    def over(self, baseline: Times) -> list[float]:
        """This candidate's processor time over the baseline's, round by round."""
        return [own / other for own, other in zip(self.cpu, baseline.cpu, strict=True)]


def interleaved(candidates: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, Times]:
    """Run the candidates in turn, `warmup` rounds uncounted and `rounds` rounds timed."""
    times = {name: Times() for name in candidates}
    for number in range(warmup + rounds):
        for name, call in candidates.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            if number >= warmup:
                times[name].cpu.append(time.process_time() - cpu)
                times[name].wall.append(time.perf_counter() - wall)
    return times


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that scripts share: `--rounds` and `--tiny`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    return parser


def one_quiet_thread() -> None:
    """Compute in one thread, and print nothing but measurements."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def peak_live_bytes(call: Callable[[], Any]) -> int:
    """The largest number of bytes that tensors hold at one time during `call`, those held before included (CPU).

    Counts what PyTorch's allocator gives out, buffers of compiled code included; not what libraries allocate inside.
    """
    gc.collect()
    before = live_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return before + highest


def live_bytes() -> int:
    """Bytes of all tensors' storages that Python knows of, each storage once."""
    gc.collect()  # what nobody holds any more would be missed as soon as it is freed
    storages: dict[int, int] = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor) and not issubclass(type(item), FakeTensor):
            with torch.no_grad():
                for tensor in (item, item.grad if item.is_leaf else None):
                    if tensor is not None and tensor.device.type != "meta":
                        storage = tensor.untyped_storage()
                        with suppress(RuntimeError):  # a tensor without memory, such as the compiler's
                            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measurement(
    name: str,
    times: Times,
    baseline: Times,
    *,
    against: str,
    target: float | None = None,
    command: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The row of a time against its baseline's.

    Args:
        name: what was measured.
        times: of the candidate.
        baseline: of the baseline, the same rounds.
        against: what the baseline is, in words.
        target: largest ratio that is good; None if there is none.
        command: how to measure it again; the process's own command line by default.
        **more: further fields.
    """
    ratios = times.over(baseline)
    spread = [significant(min(ratios)), significant(max(ratios))]
    wall = significant(median(times.wall) / median(baseline.wall))
    more = {
        "baseline_value": significant(median(baseline.cpu)),
        "spread": spread,
        "wall_ratio": wall,
        "rounds": len(ratios),
        **more,
    }
    return row(name, median(times.cpu), "s", against, median(ratios), target=target, command=command, **more)


def row(
    name: str,
    value: float,
    unit: str,
    baseline: str | None,
    ratio: float | None,
    *,
    target: float | None = None,
    command: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One measurement with the machine, the version and the date."""
    return {
        "name": name,
        "value": significant(value),
        "unit": unit,
        "baseline": baseline,
        "ratio": None if ratio is None else significant(ratio),
        "target": target,
        "met": None if target is None or ratio is None else bool(ratio <= target),
        "command": command or f"python {shlex.join(_relative(sys.argv))}",
        "machine": machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        **more,
    }


def emit(line: Mapping[str, Any]) -> None:
    """Print a measurement as one line of JSON."""
    print(json.dumps(line), flush=True)


def machine() -> str:
    """The processor, how many of its cores there are, and the GPU if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    cores = sum(line.startswith("processor") for line in lines)
    capability = torch.backends.cpu.get_cpu_capability()
    text = f"{model or 'CPU'}, {cores} cores, {capability}, {torch.get_num_threads()} thread"
    return f"{text}; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def significant(value: float, digits: int = 4) -> float:
    """`value` rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


def _relative(argv: Sequence[str]) -> list[str]:
    program = Path(argv[0])
    root = Path(__file__).resolve().parents[1]
    name = str(program.resolve().relative_to(root)) if program.resolve().is_relative_to(root) else program.name
    return [name, *argv[1:]]
