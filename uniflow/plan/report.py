"""A plan as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from uniflow.plan.cost import Part
from uniflow.plan.memory import Memory

GIB = 2**30
# Columns of the printed table -> what they are the sum of; JSON has each by itself.
_COLUMNS = {
    "states": ("parameters", "gradients", "optimizer", "average"),
    "teacher": ("teacher",),
    "activations": ("activations",),
    "exchange": ("buckets", "gathered"),
    "total": ("total",),
}
_CHECKPOINTED = {False: "", "selective": ", some", True: ", ckpt"}
_SHORT = {"fsdp2 gathering bfloat16": "fsdp2 bfloat16"}


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Attributes:
        name: of the encoder or the recipe.
        size: of the images, (H, W).
        batch_size: images per GPU and step, before accumulation.
        devices: GPUs.
        parts: the networks.
        training_gflop: of the forward and backward pass of one image.
        memory: of one GPU, a row for each precision, strategy, and for activation checkpointing off, selective and on.
        images: images to train on, with repetitions; None if the recipe does not say how many an epoch has.
        hours: of the whole run; None if that is not known.
        assumed: `mfu` and `device_tflops`, by which the hours were computed.
    """

    name: str
    size: tuple[int, int]
    batch_size: int
    devices: int
    parts: list[Part]
    training_gflop: float
    memory: list[Memory]
    images: int | None
    hours: float | None
    assumed: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The whole plan, ready for JSON; bytes are whole numbers."""
        return asdict(self)


def print_plan(plan: Plan) -> None:
    """Print one plan: its parts, its memory, its hours."""
    console = Console()
    height, width = plan.size
    parts = _table(
        f"{plan.name}: parts, one image of {height} x {width} pixels",
        ("part", "class"), ("trained", "frozen", "forward GFLOP", "training GFLOP"),
    )  # fmt: skip
    for part in plan.parts:
        parts.add_row(part.name, part.kind, _millions(part.trained), _millions(part.frozen),
                      f"{part.forward_gflop:,.1f}", f"{part.training_gflop:,.1f}")  # fmt: skip
    parts.add_row("total", "", _millions(sum(p.trained for p in plan.parts)),
                  _millions(sum(p.frozen for p in plan.parts)), "", f"{plan.training_gflop:,.1f}")  # fmt: skip
    console.print(parts)
    gpus = f"{plan.devices} GPU{'s' * (plan.devices > 1)}"
    title = f"GiB a GPU, {plan.batch_size} images each, {gpus}; ckpt: activation checkpointing; some: selective"
    memory = _table(title, ("precision, strategy",), _COLUMNS)
    for row in plan.memory:
        sizes = (f"{sum(getattr(row, name) for name in names) / GIB:,.2f}" for names in _COLUMNS.values())
        strategy = _SHORT.get(row.strategy, row.strategy) + _CHECKPOINTED[row.checkpointing]
        memory.add_row(f"{row.precision}, {strategy}", *sizes)
    console.print(memory)
    print(_hours(plan))


def print_table(plans: Iterable[Plan]) -> None:
    """Print several plans, one line each, as Markdown."""
    names = ("encoder", "parameters", "training GFLOP", "ddp", "ddp, ckpt", "fsdp2", "fsdp2, ckpt",
             "fsdp2 bf16, ckpt", "hours")  # fmt: skip
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    chosen = [("ddp", False), ("ddp", True), ("fsdp2", False), ("fsdp2", True), ("fsdp2 gathering bfloat16", True)]
    for plan in plans:
        totals = {(m.strategy, m.checkpointing): m.total for m in plan.memory if m.precision == "bf16-mixed"}
        trained = sum(part.trained + part.frozen for part in plan.parts if part.name == "encoder")
        cells = [plan.name, f"{trained / 1e6:,.0f} M", f"{plan.training_gflop:,.0f}"]
        cells += [f"{totals[key] / GIB:,.1f}" for key in chosen]
        print("| " + " | ".join([*cells, "" if plan.hours is None else f"{plan.hours:,.0f}"]) + " |")


def _hours(plan: Plan) -> str:
    if plan.hours is None:
        return "hours: the recipe counts epochs; say how many images one has with --epoch_images N"
    mfu, tflops = plan.assumed["mfu"], plan.assumed["device_tflops"]
    return (
        f"{plan.hours:,.1f} hours on {plan.devices} GPU{'s' * (plan.devices > 1)} for {plan.images:,} images at MFU "
        f"{mfu:g} of {tflops:g} TFLOP/s; an estimate, checkpointing takes up to a third more"
    )


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"
