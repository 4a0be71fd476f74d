"""`uniflow plan`: what a fit would take, from its options alone; nothing is allocated, read or fetched."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer

from uniflow.cli.app import prepare
from uniflow.cli.errors import UserError, user_errors
from uniflow.cli.recipe_tool import RecipeTool
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
    recipe = PlanCLI(args)
    plan(recipe, **recipe.arguments)
    return 0


def plan(
    recipe: PlanCLI,
    batch_size: int | None = None,
    devices: int | None = None,
    image_size: int | None = None,
    epoch_images: int | None = None,
    mfu: float = 0.4,
    device_tflops: float = 989.0,
    table: bool = False,
    json: str | None = None,
) -> None:
    """Say what a fit would take, from its options alone: parameters, operations, memory per GPU, hours.

    Args:
        recipe: the task, and the options of its data and trainer.
        batch_size: images per GPU; by default that of the data.
        devices: total number of GPUs; by default that of the trainer, 1 for `auto`.
        image_size: side in pixels; by default that of the data.
        epoch_images: training images per epoch, if the data does not say.
        mfu: model FLOP utilisation to compute hours with, in (0, 1].
        device_tflops: peak speed of a GPU in TFLOP/s; 989 is an H100's in dense bfloat16.
        table: plan the recipe for four encoders of 0.3 to 6 billion parameters, one line each, in bf16-mixed.
        json: file that the plan is also written to.
    """
    _check(batch_size=batch_size, devices=devices, image_size=image_size, epoch_images=epoch_images)
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu must lie in (0, 1], not {mfu}")
    if not device_tflops > 0:
        raise UserError(f"--device_tflops must be positive, not {device_tflops}")
    recipes = {name: recipe.with_encoder(encoder) for name, encoder in SIZES.items()} if table else {None: recipe}
    settings: dict[str, Any] = {"precisions": (True,) if table else (False, True), "epoch_images": epoch_images}
    settings |= {"batch_size": batch_size, "image_size": image_size, "devices": devices}
    assumed = {"mfu": mfu, "device_tflops": device_tflops}
    with user_errors():
        plans = [make_plan(one, assumed, name=name, **settings) for name, one in recipes.items()]
    if table:
        print_table(plans)
    else:
        print_plan(plans[0])
    if json is not None:
        content = [one.plain() for one in plans]
        Path(json).write_text(dumps(content if table else content[0], indent=2) + "\n")


class PlanCLI(RecipeTool):
    """The options of `uniflow fit`, and those of `plan`; the model is built without its weights, and nothing else.

    Attributes:
        data_options: arguments of the data module.
        average: whether EMA keeps an average of the weights.
    """

    needs_model = True

    def __init__(self, args: list[str]) -> None:
        self._args = args
        super().__init__("plan", plan, args, skip={"recipe"})

    def with_encoder(self, options: list[str]) -> PlanCLI:
        """The same options with another encoder."""
        return PlanCLI([*self._args, "--table", "false", "--model.encoder", *options])

    def _set_seed(self) -> None:
        """No seed: a plan needs no random numbers."""

    def before_instantiate_classes(self) -> None:
        options = self.config
        self.data_options = dict((options.get("data") or {}).get("init_args") or {})
        ema = options.get("ema")
        self.average = ema is not None and (ema.get("init_args") or {}).get("decay", 1) > 0
        _drop_weights(options.model)
        super().before_instantiate_classes()
        if options.table:  # the encoders of the table take the place of this one
            options.model = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return quiet_trainer()  # that of the options would look for its hardware

    @property
    def task(self) -> Task:
        """The task that the recipe trains.

        Raises:
            UserError: if it is not a task of this package or a subclass.
        """
        if not isinstance(self.model, Task):
            raise UserError(f"uniflow plan needs a uniflow.tasks.Task, not {type(self.model).__name__}")
        return self.model


def make_plan(
    recipe: PlanCLI,
    assumed: dict[str, float],
    *,
    name: str | None,
    batch_size: int | None,
    image_size: int | None,
    devices: int | None,
    epoch_images: int | None,
    precisions: Sequence[bool],
) -> Plan:
    """The plan of one recipe.

    Args:
        recipe: the recipe.
        assumed: `mfu` and `device_tflops` of the GPUs.
        name: what to call the plan; None is the encoder's class.
        batch_size, image_size, devices, epoch_images: as for `plan`; None is what the recipe says.
        precisions: the precisions to plan memory for: True is bf16-mixed, False float32.

    Raises:
        UserError: if the recipe does not say what is not given.
    """
    trainer = recipe.config.trainer
    batch_size = _given(batch_size, recipe.data_options.get("batch_size"), "batch_size")
    size = _given(image_size, recipe.data_options.get("size"), "image_size")
    height, width = (size, size) if isinstance(size, int) else size
    devices = devices or _count(trainer.get("devices")) * (trainer.get("num_nodes") or 1)
    accumulate = trainer.get("accumulate_grad_batches") or 1
    epoch = epoch_images or recipe.data_options.get("train_length") or recipe.data_options.get("epoch_length")
    images = _training_images(trainer, epoch, batch_size * devices * accumulate)
    fake = FakeTask(recipe.task)
    parts = parts_of(fake, (height, width))
    memory = [
        row
        for mixed in precisions
        for checkpointing in (False, "selective", True)
        for row in memory_of(
            fake, (batch_size, 3, height, width), devices=devices, mixed=mixed, checkpointing=checkpointing,
            average=recipe.average, accumulate=accumulate > 1,
        )
    ]  # fmt: skip
    gflop = sum(part.training_gflop for part in parts)
    hours = None if images is None else training_hours(images, gflop, devices=devices, **assumed)
    name = name or parts[0].kind
    return Plan(name, (height, width), batch_size, devices, parts, gflop, memory, images, hours, assumed)


def _drop_weights(options: Any) -> None:
    """Let all encoders of a model's options, at any depth, be built without fetching weights."""
    if not isinstance(options, Namespace):
        return
    path, arguments = options.get("class_path"), options.get("init_args")
    cls = resolve_name(path) if isinstance(path, str) else None
    if isinstance(cls, type) and issubclass(cls, VisionEncoder) and isinstance(arguments, Namespace):
        for name, value in cls.unloaded_arguments().items():
            arguments[name] = value
    for value in vars(options).values():
        _drop_weights(value)


def _training_images(trainer: Namespace, epoch: int | None, batch: int) -> int | None:
    """Training images of the whole run with `epoch` images an epoch and `batch` a step; None if that is not known."""
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    ends = [steps * batch] if steps is not None and steps > 0 else []
    if epochs is not None and epochs > 0:
        if epoch is None:
            return min(ends, default=None)
        ends.append(epochs * epoch)
    if not ends:
        raise UserError("hours need an end of training: set trainer.max_steps or max_epochs")
    return min(ends)


def _check(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name} must be at least 1, not {count}")


def _given(option: Any, of_data: Any, name: str) -> Any:
    value = option if option is not None else of_data
    if value is None:
        raise UserError(f"the data does not say its {name}: give --{name} N")
    return value


def _count(devices: Any) -> int:
    """The number of GPUs that `trainer.devices` stands for; 1 for those that depend on the machine."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    return int(text) if text.isdigit() and int(text) > 0 else 1
