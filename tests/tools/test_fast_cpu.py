"""`--fast_cpu`: linear layers by oneDNN where that is faster, in all tools that run a tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import write_photos

from uniflow.layers import cpu
from uniflow.pretrained import DEFAULT
from uniflow.tools.common import load_tokenizer


def operators(call: Callable[[], Any]) -> tuple[Any, set[str]]:
    """The result of a call, and the names of the operators that it runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        result = call()
    return result, {event.key for event in profiler.key_averages()}


@torch.inference_mode()
def test_it_changes_the_operator_and_not_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images, noise = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)

    def reconstruct(fast_cpu: bool) -> tuple[torch.Tensor, set[str]]:
        tokenizer, device = load_tokenizer(DEFAULT, "cpu", fast_cpu)
        assert device == "cpu"
        return operators(lambda: tokenizer.reconstruct(images, noise=noise))

    monkeypatch.setattr("uniflow.tools.common.onednn_is_faster", lambda: True)
    plain, plain_operators = reconstruct(False)
    fast, fast_operators = reconstruct(True)
    assert "mkldnn::_linear_pointwise" in fast_operators - plain_operators
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=0)
    monkeypatch.setattr("uniflow.tools.common.onednn_is_faster", lambda: False)
    assert "mkldnn::_linear_pointwise" not in reconstruct(True)[1]


TOOLS = {
    "reconstruct": ["reconstruct", "photos/test", "--size", "32"],
    "evaluate": ["evaluate", "embedded", "--images", "[photos/test]", "--size", "32", "--num_workers", "0"],
    "look": ["look", "embedded", "photos/test/class0/0.png", "--size", "32"],
    "sweep-steps": ["sweep-steps", "embedded", "--images", "[photos/test]", "--size", "32", "--num_workers", "0",
                    "--steps", "[1]", "--starts", "[zero]", "--repeats", "1"],
}  # fmt: skip


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_takes_it(
    uniflow: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_photos(project / "photos", splits=("test",), count=1)
    monkeypatch.setattr("uniflow.tools.common.onednn_is_faster", lambda: True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # plots take longer than decoding
    linear, with_gradients = cpu._linear, []

    def recorded(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        with_gradients.append(torch.is_grad_enabled())  # where the operator would not be oneDNN's
        return linear(layer, x)

    monkeypatch.setattr(cpu, "_linear", recorded)
    asked = [(["--fast_cpu", "true"], True)] if name == "reconstruct" else []
    for options, used in [([], True), (["--fast_cpu", "false"], False), *asked]:
        with_gradients.clear()
        result = uniflow(*TOOLS[name], *options, "--device", "cpu")
        assert result.code == 0, result.err
        assert (False in with_gradients) == used, options
