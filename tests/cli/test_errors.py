"""Bad input gets one clear line and exit code 2; a bug keeps its traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = ("fit", "-c", "recipe.yaml", "--run", "run")
Uniflow = Callable[..., Any]

# Options after the recipe's -> what the one line has to say.
BAD_OPTIONS = {
    "unknown option": (
        ["--trainer.max_stes", "3"],
        ["no option --trainer.max_stes", "did you mean --trainer.max_steps"],
    ),
    "unknown group": (["--modle", "TokenizerTask"], ["no option --modle", "--model"]),
    "wrong type": (["--trainer.max_steps", "many"], ["trainer.max_steps", "expected an integer", "many"]),
    "wrong type in a part": (["--model.encoder.depth", "deep"], ["model.encoder.depth", "integer", "deep"]),
    "unknown argument of a part": (["--model.encoder.dept", "3"], ["model.encoder", "dept", "did you mean depth?"]),
    "misspelt class": (["--model.encoder", "SceneVit"], ["model.encoder", "VisionEncoder", "SceneViT", "DINOv2"]),
    "misspelt weighting": (
        ["--model.weighting", "LastLayr"],
        ["model.weighting", "mean LastLayer?", "Adaptive", "Uniform"],
    ),
    "misspelt schedule": (
        ["--model.distillation_weight", "Liner"],
        ["model.distillation_weight", "Schedule", "did you mean LinearSchedule?"],
    ),
    "misspelt optimizer": (["--model.optimizer", "AdmW"], ["model.optimizer", "mean AdamW?", "FusedAdamW"]),
    "misspelt task": (["--model", "TokeniserTask"], ["model", "did you mean TokenizerTask?"]),
    "misspelt data": (["--data", "Scene"], ["data", "did you mean Scenes?"]),
    "class not in module": (
        ["--model.decoder", "my_pkg.MyDecodr"],
        ["model.decoder", "my_pkg.MyDecodr", "cannot import"],
    ),
    "module not found": (["--model.decoder", "your_pkg.Decoder"], ["model.decoder", "your_pkg", "cannot import"]),
    "class of the wrong kind": (["--model.decoder", "uniflow.data.Scenes"], ["model.decoder", "is not a PixelDecoder"]),
    "missing component file": (
        ["--model.encoder", "configs/nope.yaml"],
        ["model.encoder", "no file 'configs/nope.yaml'"],
    ),
    "missing config": (["-c", "nope.yaml"], ["nope.yaml", "there is no file"]),
    "bad yaml": (["-c", "bad.yaml"], ["bad.yaml"]),
    "bad component": (["--model.encoder", "bad.yaml"], ["bad.yaml is not valid YAML"]),
    "missing checkpoint": (["--ckpt_path", "nope.ckpt"], ["no checkpoint nope.ckpt"]),
    "missing last checkpoint": (["--ckpt_path", "last"], ["no checkpoint run/last.ckpt"]),
    "not a checkpoint": (["--ckpt_path", "recipe.yaml"], ["recipe.yaml", "checkpoint"]),
    "refused by the data module": (["--data.batch_size", "0"], ["batch_size must be at least 1"]),
    "refused by a part": (["--model.decoder", "my_pkg.RefusingDecoder"], ["width must be a multiple of 7, not 8"]),
    "refused by the trainer": (["--trainer.precision", "12"], ["trainer.precision"]),
    "too little data": (["--data.train_length", "2"], ["batch_size"]),
    "missing data folder": (["--data", "ImageFolder", "--data.root", "nowhere"], ["nowhere"]),
    "pictures that do not fit the patches": (["--data.size", "36"], ["multiples of the patch size 8, got (36, 36)"]),
    "unmonitored metric": (["--best_checkpoint.monitor", "val/nope"], ["val/nope"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option(uniflow: Uniflow, project: Path, case: str) -> None:
    (project / "bad.yaml").write_text("model: {encoder: [1, 2\n")
    options, expected = BAD_OPTIONS[case]
    line = uniflow(*RECIPE, *options).error
    for text in expected:
        assert text in line
    assert len(line) <= 320


def test_missing_slots(uniflow: Uniflow) -> None:
    assert "model" in uniflow("fit", "--data", "Scenes").error
    assert "data" in uniflow("fit", "--model", "TokenizerTask", "--model.encoder", "SceneViT").error
    assert "encoder" in uniflow("fit", "--model", "TokenizerTask", "--data", "Scenes").error


def test_unknown_command(uniflow: Uniflow) -> None:
    line = uniflow("trian").error
    assert "no command 'trian'" in line
    assert "fit, validate, test, predict" in line


def test_unknown_key_in_a_config(uniflow: Uniflow, project: Path) -> None:
    (project / "more.yaml").write_text("trainer: {max_stes: 3}")
    assert "max_stes" in uniflow(*RECIPE, "-c", "more.yaml").error


def test_the_trace_of_a_bug_is_in_the_run(uniflow: Uniflow) -> None:
    result = uniflow(*RECIPE, "--model.decoder", "my_pkg.BrokenDecoder", "--run", "runs/bug")
    assert result.code == 1
    assert "ValueError: a bug in the training step (trace: runs/bug/error.log)" in result.error
    assert "my_pkg.py" in Path("runs/bug/error.log").read_text()


TIGHT = """import torch
from my_pkg import MyDecoder

class OfGPU(MyDecoder):
    def loss(self, latents, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

class OfMachine(MyDecoder):
    def loss(self, latents, images):
        torch.empty(2**60, dtype=torch.uint8)
"""


@pytest.mark.parametrize(
    ("decoder", "said"),
    [("OfGPU", "Tried to allocate 2 GiB."), ("OfMachine", "Error: DefaultCPUAllocator: can't allocate memory")],
)
def test_too_little_memory_is_one_line_with_advice(uniflow: Uniflow, project: Path, decoder: str, said: str) -> None:
    (project / "tight.py").write_text(TIGHT)
    result = uniflow(*RECIPE, "--model.decoder", f"tight.{decoder}", "--run", "runs/tight")
    assert result.code == 1
    assert said in result.error
    assert "; take a smaller --data.batch_size (and --trainer.accumulate_grad_batches)" in result.error
    assert "(trace: runs/tight/error.log)" in result.error


def test_on_off_options_inside_of_a_part_need_no_value(uniflow: Uniflow) -> None:
    printed = uniflow(*RECIPE, "--model.activation_checkpointing", "--data.batch_size", "3", "--print_config").out
    assert "activation_checkpointing: true" in printed
    assert "activation_checkpointing: false" in uniflow(*RECIPE, "--print_config").out
    for name in ("--model.decoder.width", "--model.encoder.weights", "--model.optimizer.lr", "--data.seed"):
        assert name.removeprefix("--") in uniflow(*RECIPE, name, "--run", "runs/flags").error


def test_debug_shows_where(uniflow: Uniflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFLOW_DEBUG", "1")
    result = uniflow(*RECIPE, "--model.decoder", "my_pkg.RefusingDecoder")
    assert result.code == 2
    assert "Traceback" in result.err
    assert "my_pkg.py" in result.err


def test_interrupt(uniflow: Uniflow) -> None:
    result = uniflow(*RECIPE, "--model.decoder", "my_pkg.InterruptedDecoder")
    assert result.code == 130
    assert "Traceback" not in result.err
