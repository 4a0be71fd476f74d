"""Size and cost of a tokenizer's parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uniflow.core.part import own_class
from uniflow.layers.blocks import restore_blocks
from uniflow.sharding.shard import is_sharded
from uniflow.tokenizer.model import Tokenizer


def model_summary(
    tokenizer: Tokenizer, image_size: int | tuple[int, int] | None = None, steps: int = 1
) -> dict[str, dict[str, float]]:
    """Parameters and cost of each part for one image.

    Args:
        tokenizer: on any device; it is not changed.
        image_size: side, or (H, W), in pixels; the encoder's pretraining size by default.
        steps: sampler steps of the decoder.

    Returns:
        For "encoder", "bottleneck", "decoder" and "total": `parameters` (count) and `gflop` (10^9 floating-point
        operations of the matrix products in the forward pass, a multiply-add counted as two).
    """
    size = image_size or tokenizer.encoder.spec.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    # On the meta device nothing is computed, and a model of billions of parameters needs no memory.
    model = _copy(tokenizer).to("meta").eval().float().requires_grad_(False)
    images = torch.empty(1, 3, height, width, device="meta")
    noise = torch.empty_like(model.pad(images))
    rows: dict[str, dict[str, float]] = {}
    stages: list[tuple[str, Callable[[Any], Any]]] = [
        ("encoder", lambda pixels: model.encoder(model.pad(pixels))),
        ("bottleneck", lambda output: model.bottleneck(output)[0]),
        ("decoder", lambda latents: model.decode(latents, steps=steps, noise=noise)),
    ]
    value: Any = images
    for name, stage in stages:
        # Plain attention is made of matrix products that the counter knows; fused kernels differ between devices.
        with (
            torch.no_grad(),
            nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            value = stage(value)
        part: nn.Module = getattr(tokenizer, name)
        parameters = sum(p.numel() for p in part.parameters())
        rows[name] = {"parameters": parameters, "gflop": counter.get_total_flops() / 1e9}
    rows["total"] = {key: sum(row[key] for row in rows.values()) for key in ("parameters", "gflop")}
    return rows


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of the same architecture that is neither sharded nor compiled."""
    if is_sharded(tokenizer):
        return Tokenizer.from_config(tokenizer.config())
    model = copy.deepcopy(tokenizer)
    restore_blocks(model)
    return model


def print_summary(tokenizer: Tokenizer, image_size: int | tuple[int, int] | None = None) -> None:
    """Print `model_summary` as a table."""
    size = image_size or tokenizer.encoder.spec.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    table = Table(
        title="parts of the tokenizer",
        caption=f"GFLOP: 10^9 operations, one image of {height} x {width} pixels, 1 step",
    )
    table.add_column("part")
    table.add_column("class")
    for column in ("parameters", "trained", "GFLOP"):
        table.add_column(column, justify="right")
    for name, row in model_summary(tokenizer, (height, width)).items():
        part: nn.Module = tokenizer if name == "total" else getattr(tokenizer, name)
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        kind = "" if name == "total" else own_class(part).__name__
        table.add_row(
            name, kind, f"{row['parameters'] / 1e6:,.2f} M", f"{trained / 1e6:,.2f} M", f"{row['gflop']:,.2f}"
        )
    Console().print(table)
