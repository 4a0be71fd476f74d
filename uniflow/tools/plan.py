"""`uniflow plan`: what a fit would take, from its options alone; nothing is allocated, read or fetched for it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from uniflow.cli.app import UniflowCLI, callback_options, prepare
from uniflow.cli.errors import UserError, user_errors
from uniflow.core.imports import import_part
from uniflow.encoders import VisionEncoder
from uniflow.plan import FakeTask, memory_of, parts_of, training_hours
from uniflow.plan.report import Plan, print_plan, print_table
from uniflow.plan.simulate import quiet_trainer
from uniflow.tasks import Task

# Encoders of `--table`: name -> options. timm has no InternViT-6B: its shape (48 blocks of width 3200, 25 heads, MLP
# ratio 4; arXiv 2312.14238) in timm's InternViT-300M, which has no norm of queries and keys, and biases beside qkv.
SIZES = {
    "DINOv2 ViT-L/14": ["DINOv2", "--model.encoder.variant", "l14"],
    "SigLIP 2 so400m/14": ["SigLIP", "--model.encoder.variant", "v2_so400m_14_224"],
    "DINOv2 ViT-g/14": ["DINOv2", "--model.encoder.variant", "g14"],
    "InternViT-6B/14 (shape)": [
        "InternViT", "--model.encoder.depth", "48", "--model.encoder.embed_dim", "3200",
        "--model.encoder.num_heads", "25", "--model.encoder.mlp_ratio", "4", "--model.encoder.weights", "null",
    ],
}  # fmt: skip


def run_plan(args: list[str]) -> int:
    """Plan the fit of the options `args`, or with `--table true` one for each of `SIZES`."""
    prepare()
    first = PlanCLI("plan", args)
    options = first.options
    plans = [first.plan] if not options.table else []
    for name, encoder in SIZES.items() if options.table else ():
        plans.append(PlanCLI("plan", [*args, "--model.encoder", *encoder], name).plan)
    if options.table:
        print_table(plans)
    else:
        print_plan(plans[0])
    if options.json is not None:
        content = [plan.plain() for plan in plans]
        Path(options.json).write_text(json.dumps(content if options.table else content[0], indent=2) + "\n")
    return 0


class PlanTrainer(Trainer):
    """A `Trainer` whose one entry point only names the options of `uniflow plan`."""

    def plan(
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        batch_size: int | None = None,
        devices: int | None = None,
        image_size: int | None = None,
        epoch_images: int | None = None,
        mfu: float = 0.4,
        device_tflops: float = 989.0,
        table: bool = False,
        json: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Say what a fit would take, from its options alone: parameters, operations, memory a GPU, hours.

        Args:
            model: the task; its weights are not fetched.
            datamodule: not used but for batch size, image size and the length of an epoch.
            batch_size: images a GPU; that of the data by default.
            devices: GPUs in all; those of the trainer by default, 1 for `auto`.
            image_size: side in pixels; that of the data by default.
            epoch_images: training images an epoch, if the data does not say.
            mfu: model FLOP utilisation to compute hours with, in (0, 1].
            device_tflops: 10^12 operations a second that a GPU can do at most; 989 is an H100's in dense bfloat16.
            table: plan the recipe for four encoders of 0.3 to 6 billion parameters, one line each, in bf16-mixed.
            json: file to write the plan to, too.
            ckpt_path: not used.
        """


class PlanCLI(UniflowCLI):
    """The options of `uniflow fit`, and those of `PlanTrainer.plan`; the result is `plan`.

    Args:
        command: "plan".
        args: the options.
        name: what to call the plan; None is the encoder's class. With `table` and no name nothing is planned.
    """

    plan: Plan

    def __init__(self, command: str, args: list[str], name: str | None = None) -> None:
        self._name = name
        super().__init__(command, args)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        self.trainer_class = PlanTrainer
        super().setup_parser(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self._command: {"model", "datamodule"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(PlanTrainer, "trainer")
        parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--weights_only", type=bool | None, help=argparse.SUPPRESS)  # every RUN/config.yaml has it

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    @property
    def options(self) -> Namespace:
        """The parsed options."""
        return self.config[self._command]

    def before_instantiate_classes(self) -> None:
        options = self.options
        self._data = dict((options.get("data") or {}).get("init_args") or {})
        self._ema = options.get("ema")
        _check(options)
        encoder = options.model.get("init_args", {}).get("encoder")
        if encoder is not None:
            encoder_class = import_part({"class_path": encoder.class_path}, VisionEncoder)
            for name, value in encoder_class.unloaded_arguments().items():  # nothing is fetched
                encoder.init_args[name] = value
        for unused in ("data", *callback_options()):
            options[unused] = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return quiet_trainer()  # that of the options would look for its hardware

    def _run_subcommand(self, subcommand: str) -> None:
        if self._name is None and self.options.table:
            return
        if not isinstance(self.model, Task):
            raise UserError(f"uniflow plan needs a uniflow.tasks.Task, not {type(self.model).__name__}")
        with user_errors():
            self.plan = self._make_plan(self.model)

    def _make_plan(self, task: Task) -> Plan:
        options, trainer = self.options, self.options.trainer
        batch_size = _given(options.batch_size, self._data.get("batch_size"), "batch_size")
        size = _given(options.image_size, self._data.get("size"), "image_size")
        height, width = (size, size) if isinstance(size, int) else size
        devices = options.devices or _count(trainer.get("devices")) * (trainer.get("num_nodes") or 1)
        accumulate = trainer.get("accumulate_grad_batches") or 1
        average = self._ema is not None and (self._ema.get("init_args") or {}).get("decay", 1) > 0
        fake = FakeTask(task)
        parts = parts_of(fake, (height, width))
        memory = [
            row
            for mixed in (False, True)[options.table :]
            for checkpointing in (False, True)
            for row in memory_of(
                fake, (batch_size, 3, height, width), devices=devices, mixed=mixed, checkpointing=checkpointing,
                average=average, accumulate=accumulate > 1,
            )
        ]  # fmt: skip
        gflop = sum(part.training_gflop for part in parts)
        images = self._images(batch_size * devices * accumulate)
        assumed = {"mfu": options.mfu, "device_tflops": options.device_tflops}
        hours = None if images is None else training_hours(images, gflop, devices=devices, **assumed)
        name = self._name or parts[0].kind
        return Plan(name, (height, width), batch_size, devices, parts, gflop, memory, images, hours, assumed)

    def _images(self, batch: int) -> int | None:
        """Training images of the whole run, of which `batch` go into a step; None if that is not known."""
        options, trainer = self.options, self.options.trainer
        epoch = options.epoch_images or self._data.get("train_length") or self._data.get("epoch_length")
        steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
        ends = [steps * batch] if steps is not None and steps > 0 else []
        if epochs is not None and epochs > 0:
            if epoch is None:
                return min(ends, default=None)
            ends.append(epochs * epoch)
        if not ends:
            raise UserError("hours need an end of training: set trainer.max_steps or max_epochs")
        return min(ends)


def _check(options: Namespace) -> None:
    for name in ("batch_size", "devices", "image_size", "epoch_images"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name} must be at least 1, not {options[name]}")
    if not 0 < options.mfu <= 1:
        raise UserError(f"--mfu must lie in (0, 1], not {options.mfu}")
    if not options.device_tflops > 0:
        raise UserError(f"--device_tflops must be positive, not {options.device_tflops}")


def _given(option: Any, of_data: Any, name: str) -> Any:
    found = option if option is not None else of_data
    if found is None:
        raise UserError(f"the data does not say its {name}: give --{name} N")
    return found


def _count(devices: Any) -> int:
    """The number of GPUs that `trainer.devices` stands for; 1 for those that depend on the machine."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    return int(text) if text.isdigit() and int(text) > 0 else 1
