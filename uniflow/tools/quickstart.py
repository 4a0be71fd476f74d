"""The main job, small and whole: adapting the embedded encoder, with controls."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import torch

from uniflow.cli import main
from uniflow.cli.precision import FAST_ON_CPU, slow_on_this_cpu
from uniflow.cli.shipped import find_file
from uniflow.core.yaml_files import read_yaml

# Run -> what it is, in plain words, and its options. The first is the recipe, the others are its controls.
RUNS: dict[str, tuple[str, list[str]]] = {
    "adaptive": ("the recipe: the encoder learns to keep the image, and is held to what it understood before", []),
    "no_distillation": (
        "control: the encoder learns to keep the image, and is free to forget the rest",
        ["--model.distillation_weight", "0", "--model.latent_feature_weight", "0"],
    ),
    "frozen_encoder": (
        "control: the encoder is frozen; only bottleneck and decoder are trained",
        ["--model.encoder.tune", "frozen"],
    ),
    "last_layer_only": (
        "control: as in the paper, the latents read the last layer alone and begin with random weights",
        [
            *("--model.bottleneck.layers", "last", "--model.bottleneck.shortcut", "false"),
            *("--model.decoder.shortcut", "false", "--model.start", "random", "--model.latent_feature_weight", "0"),
        ],
    ),
}


def quickstart(
    config: Path = Path("quickstart"),
    out: Path = Path("runs/quickstart"),
    overrides: list[str] | None = None,
) -> int:
    """Adapt the embedded encoder on Scenes, by the recipe and in three controls; compare the four.

    Every step is an ordinary command, printed before it runs. On a CPU without bfloat16 instructions the runs compute
    in float32, which is several times faster there.

    Args:
        config: the recipe: a file, or the name of one that uniflow ships.
        out: folder for the four runs and the report; runs that are there already are kept and not repeated.
        overrides: further options for each `uniflow fit`, such as '["--trainer.max_steps", "50"]'; those that make a
            run the control that it is come after them.

    Raises:
        UserError: if there is no such recipe.
    """
    config = find_file(str(config), "recipe")
    begin = time.perf_counter()
    precision = _precision(config, overrides or [])
    for number, (name, (what, options)) in enumerate(RUNS.items(), start=1):
        run = out / name
        print(f"\n=== Run {number} of {len(RUNS)}, {name}\n{what}", flush=True)
        if (run / "test_results.json").is_file():
            print(f"{run} is there already; delete it to run it again")
            continue
        # A run that was killed goes on from its last checkpoint.
        resume = ["--ckpt_path", str(run / "last.ckpt")] if (run / "last.ckpt").is_file() else []
        code = _command("fit", "-c", str(config), "--run", str(run), *precision, *(overrides or []), *options, *resume)
        # The report shows the results with plainer names than Lightning's table.
        test = ("test", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "last.ckpt"), "--verbose", "false")
        code = code or _command(*test)
        if code:
            return code
    print("\n=== Results")
    code = _command("report", *(str(out / name) for name in RUNS), "--out", str(out / "report"))
    if code:
        return code
    seconds = time.perf_counter() - begin
    print(f"\nDone in {seconds / 60:.1f} minutes. Look at {out}/report/comparison.png first.")
    print(f"The tokenizer: {out}/{next(iter(RUNS))}/tokenizer. Training curves: tensorboard --logdir {out}")
    return 0


def _precision(config: Path, overrides: list[str]) -> list[str]:
    """Options that set a precision which is fast on this machine's CPU; none on GPUs, or if `overrides` set one."""
    if any(word.startswith("--trainer.precision") for word in overrides):
        return []
    recipe = (read_yaml(config) or {}).get("trainer", {}).get("precision")
    if torch.accelerator.is_available() or not slow_on_this_cpu(recipe):
        print(f"Precision: {recipe}, as {config} says")
        return []
    print(f"Precision: {FAST_ON_CPU} instead of {recipe}, which is slow on CPUs without bfloat16 instructions")
    return ["--trainer.precision", FAST_ON_CPU]


def _command(*arguments: str) -> int:
    print(f"\n$ uniflow {shlex.join(arguments)}", flush=True)
    return main(arguments)
