"""`--model.encoder.tune lora` on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from cli_fixtures import plain
from safetensors.torch import load_file

from uniflow.cli.parser import Parser
from uniflow.tasks import TokenizerTask

Uniflow = Callable[..., Any]
RECIPE = ("fit", "-c", "recipe.yaml", "--model.lr_schedule", "Constant", "--probe", "null", "--images", "null")
LORA = ("--model.encoder.tune", "lora", "--model.encoder.lora_rank", "2")


def finished(uniflow: Uniflow, *options: str) -> None:
    result = uniflow(*options)
    assert result.code == 0, result.err


def test_fit_resume_and_test(uniflow: Uniflow) -> None:
    """Two and two steps are four, to the last bit; and the tested weights are known for those of the folder."""
    whole, halves = Path("runs/whole"), Path("runs/halves")
    finished(uniflow, *RECIPE, *LORA, "--trainer.max_steps", "4", "--run", str(whole))
    finished(uniflow, *RECIPE, *LORA, "--run", str(halves))
    finished(
        uniflow, "fit", "-c", f"{halves}/config.yaml", "--run", str(halves), "--ckpt_path", "last",
        "--trainer.max_steps", "4",
    )  # fmt: skip
    left, right = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, halves))
    assert left["global_step"] == right["global_step"] == 4
    for part in ("state_dict", "ema"):
        assert left[part].keys() == right[part].keys()
        assert all(torch.equal(value, right[part][name]) for name, value in left[part].items())
    tensors = load_file(halves / "tokenizer" / "model.safetensors")
    assert all(torch.equal(v, tensors[k]) for k, v in load_file(whole / "tokenizer" / "model.safetensors").items())
    assert not any("lora" in name or "base_layer" in name for name in tensors)
    finished(uniflow, "test", "-c", f"{halves}/config.yaml", "--ckpt_path", "last")
    results = json.loads((halves / "test_results.json").read_text())
    assert str(results["test/psnr"]) in (halves / "tokenizer" / "README.md").read_text()


def test_swaps(fit_parser: Any) -> None:
    parser = Parser()
    parser.add_argument("--model.encoder", type=get_type_hints(TokenizerTask.__init__)["encoder"])

    def encoder(*options: str) -> dict[str, Any]:
        config = parser.parse_args(["--model.encoder", "SceneViT", *options])
        return plain(config)["model"]["encoder"]["init_args"]

    given = encoder(*LORA, "--model.encoder.lora_targets", "[qkv, proj]")
    assert (given["tune"], given["lora_rank"], given["lora_targets"]) == ("lora", 2, ["qkv", "proj"])
    assert encoder(*LORA, "--model.encoder", "DINOv2") == encoder("--model.encoder", "DINOv2")
    assert encoder(*LORA, "--model.encoder.tune", "3", "--model.encoder.lora_rank", "null")["lora_rank"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--model.encoder.tune", "lora", "--model.encoder.lora_rank", "0"),
            "lora_rank: expected an integer >= 1 or null",
        ),
        (("--model.encoder.lora_rank", "4"), "lora_rank is for tune 'lora', and tune is 'full'"),
        ((*LORA, "--model.encoder.lora_targets", "[query]"), "the blocks have no linear layer 'query'; theirs are fc1"),
        ((*LORA, "--model.encoder.lora_rank", "many"), "lora_rank"),
        (("--model.encoder.tune", "lore"), "tune"),
    ],
)
def test_errors(uniflow: Uniflow, options: tuple[str, ...], message: str) -> None:
    assert message in uniflow(*RECIPE, *options).error


def test_without_peft(uniflow: Uniflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert uniflow(*RECIPE, *LORA).error.startswith("tune 'lora' needs peft: pip install uniflow[lora]")
