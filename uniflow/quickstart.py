"""The main job, small and whole: three ways of adapting the embedded encoder, side by side."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from uniflow.cli import main

RUNS: dict[str, list[str]] = {
    "adaptive": [],
    "no_distillation": ["--model.distillation_weight", "0"],
    "frozen_encoder": ["--model.encoder.tune", "frozen"],
}


def quickstart(
    config: Path = Path("configs/quickstart.yaml"),
    out: Path = Path("runs/quickstart"),
    overrides: list[str] | None = None,
) -> int:
    """Adapt the embedded encoder on Scenes with adaptive distillation, with none, and frozen; compare the three.

    Every step is an ordinary command, printed before it runs.

    Args:
        config: the recipe.
        out: folder for the three runs and the report; runs that are there already are kept and not repeated.
        overrides: further options for each `uniflow fit`, such as '["--trainer.max_steps", "50"]'.

    Raises:
        FileNotFoundError: if there is no such recipe.
    """
    if not config.is_file():
        raise FileNotFoundError(f"no recipe {config}: run this in a clone of the repository, or name one with --config")
    start = time.perf_counter()
    runs = {name: out / name for name in RUNS}
    for name, run in runs.items():
        if (run / "test_results.json").is_file():
            print(f"{run} is there already; delete it to run it again")
            continue
        # A run that was killed goes on from its last checkpoint.
        resume = ["--ckpt_path", str(run / "last.ckpt")] if (run / "last.ckpt").is_file() else []
        options = [*RUNS[name], *(overrides or [])]
        code = _command("fit", "-c", str(config), "--run", str(run), *options, *resume)
        code = code or _command("test", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "last.ckpt"))
        if code:
            return code
    code = _command("report", *map(str, runs.values()), "--out", str(out / "report"))
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s; pictures of each run: {out}/RUN/images; curves: tensorboard --logdir {out}")
    return code


def _command(*arguments: str) -> int:
    print(f"\n$ uniflow {shlex.join(arguments)}", flush=True)
    return main(arguments)
