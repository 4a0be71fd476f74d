"""`uniflow fit|validate|test|predict`: LightningCLI with run folders, clean class swaps and one-line errors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from uniflow import callbacks
from uniflow.callbacks.preemption import Preempted
from uniflow.cli import progress
from uniflow.cli.checkpoint import BestCheckpoint, LastCheckpoint
from uniflow.cli.errors import UserError, memory_advice, raised_here, user_error_types, user_errors, who_stopped
from uniflow.cli.parser import Parser
from uniflow.cli.precision import warn_if_slow
from uniflow.cli.quiet import quiet
from uniflow.cli.rundir import RunFolder, StageWatch
from uniflow.cli.supported import check_jsonargparse
from uniflow.core.disk import NoSpaceError
from uniflow.core.errors import one_line, write_trace
from uniflow.core.exit_codes import FAILED, NO_SPACE
from uniflow.core.imports import import_plugins
from uniflow.tasks import FeatureTask, Pretraining, Task, TokenizerTask
from uniflow.training.trainer import is_dry_run

# Callbacks of every run: top-level option -> class. `--KEY null` drops one, `--KEY.argument value` configures it.
GENERAL_CALLBACKS: dict[str, type[Callback]] = {
    "checkpoint": LastCheckpoint,
    "best_checkpoint": BestCheckpoint,
    "preemption": callbacks.Preemption,
    "ema": callbacks.EMA,
    "images": callbacks.ImageGrid,
    "stability": callbacks.Stability,
    "monitor": callbacks.Monitor,
    "results": callbacks.ResultsFile,
}

LONGEST_LINE = 300  # characters of an error that is not the user's; the log has all of it
_RESTORING = "checkpoint_connector"  # Lightning's module that restores checkpoints

# Imported so that their classes are known by their short names.
PACKAGES = (
    "uniflow.encoders",
    "uniflow.bottleneck",
    "uniflow.decoders",
    "uniflow.distill",
    "uniflow.data",
    "uniflow.conditions",
    "uniflow.features",
    "uniflow.generators",
    "uniflow.heads",
    "uniflow.tasks",
)


def run(command: str, args: list[str]) -> int:
    """Run fit, validate, test or predict with the options `args`.

    Returns:
        The exit code: 0 when it went through, 75 when a signal stopped it and its state is saved (130 for Ctrl-C),
        1 for an error of the program or the machine, whose trace is in RUN/error.log.
    """
    prepare()
    try:
        UniflowCLI(command, args)
    except Preempted as stop:
        rank_zero_info(f"uniflow: {stop}")
        return stop.code
    return 0


def callback_options() -> dict[str, type[Callback]]:
    """Top-level options that configure callbacks: the general ones, and those of the package's tasks."""
    options = dict(GENERAL_CALLBACKS)
    for task in (TokenizerTask, Pretraining, FeatureTask):
        options |= task.default_callbacks()
    return options


def prepare() -> None:
    """What has to be done once before a `UniflowCLI` is made: quiet libraries, clean class swaps, short class names.

    Raises:
        UserError: if the installed jsonargparse is not supported.
    """
    quiet()
    check_jsonargparse()
    from uniflow.cli import swap  # imports private names, which other versions may not have

    swap.install()
    for package in PACKAGES:
        importlib.import_module(package)
    with user_errors():
        import_plugins()


class UniflowCLI(LightningCLI):
    """One subcommand of LightningCLI. See `docs/cli.md` for what it adds.

    Args:
        command: name of the command.
        args: its command line.
        run: whether the command is an entry point of the `Trainer`, to be run; else only the parts are built.
    """

    folder: RunFolder

    def __init__(self, command: str, args: list[str], run: bool = True) -> None:
        self._command, self._run = command, run
        self.watch = StageWatch()
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # RunFolder writes it, into the run's folder whatever the logger
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"prog": "uniflow" if run else f"uniflow {command}"},
            args=[command, *args] if run else args,
            run=run,
            auto_configure_optimizers=False,  # parameters appear in configure_model
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # Only the one that is asked for: each costs half a second.
        return {name: skip for name, skip in super().subcommands().items() if name == self._command}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help="Folder of the run. Default: runs/TIME.")
        for key, cls in callback_options().items():
            default = {"class_path": f"{cls.__module__}.{cls.__qualname__}"}
            parser.add_argument(f"--{key}", type=cls | None, default=default, help="null drops it.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        if not self._run or any(word.partition("=")[0] == "--print_config" for word in args):
            self.config = parser.parse_args(args)  # only the parser above that of a command prints
            return
        # By the command's own parser: the one above it would check every option twice more.
        options = self._parser(self._command).parse_args(args[1:])
        self.config = Namespace(subcommand=self._command, **{self._command: options})

    def _parse_ckpt_path(self) -> None:
        """Off: Lightning would let a checkpoint's hyperparameters override the command line."""

    def _dump_config(self) -> None:
        """As Lightning's, without checking once more what has just been parsed: a tenth of the time of a short fit."""
        if not hasattr(self, "config_dump"):
            text = self.parser.dump(
                self.config, format="yaml", skip_link_targets=False, skip_unset=False, skip_validation=True
            )
            config = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            self.config_dump = config[self.config.subcommand] if "subcommand" in self.config else config

    def before_instantiate_classes(self) -> None:
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")
        options = self.config[self._command]
        if self._command == "predict" and options.return_predictions is None:
            options.return_predictions = False  # the latents go to files: a data set's would not fit into memory
        self.folder = RunFolder(self._command, options, self._parser(self._command))
        self.folder.prepare()

    def instantiate_classes(self) -> None:
        try:
            with user_errors():
                super().instantiate_classes()
        except BaseException:
            if hasattr(self, "folder"):  # not of every tool
                self.folder.lock.release()
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        first: list[Callback] = [self.folder.saver(), self.watch]
        extra = list(first)
        extra += self._callbacks()
        if config.get("enable_checkpointing") is False:
            extra = [cb for cb in extra if not isinstance(cb, Checkpoint)]
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("enable_progress_bar") is not False and not any(isinstance(cb, ProgressBar) for cb in given):
            extra.append(progress.progress_bar())
        if config.get("enable_model_summary") is not False and not any(isinstance(cb, ModelSummary) for cb in given):
            extra.append(callbacks.PartsSummary())
        settings = {**config, **self.folder.trainer_settings(config), **kwargs}
        trainer = self._instantiate_trainer(settings, extra)
        callbacks_of_trainer: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Before the user's own: the saver saves before anything else can fail.
        callbacks_of_trainer[:] = first + [callback for callback in callbacks_of_trainer if callback not in first]
        if self._command == "fit":
            warn_if_slow(trainer)
        return trainer

    def _callbacks(self) -> list[Callback]:
        """The general callbacks and those of the task, as the options say."""
        chosen: dict[str, Callback | None] = {key: self._get(self.config_init, key) for key in GENERAL_CALLBACKS}
        of_task = self.model.default_callbacks() if isinstance(self.model, Task) else {}
        options = callback_options()
        for key, cls in of_task.items():  # a third party's task may have callbacks without an option
            chosen[key] = self._get(self.config_init, key) if options.get(key) is cls else cls()
        return [callback for callback in chosen.values() if callback is not None]

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with self.run_errors():
                super()._run_subcommand(subcommand)
            if subcommand == "fit" and not is_dry_run(self.trainer):
                rank_zero_info(self.folder.results())
        except Preempted as stop:
            raise Preempted(f"{stop}; {self.folder.how_to_go_on()}", stop.code) from None
        except UserError:
            raise
        except Exception as error:
            if os.environ.get("UNIFLOW_DEBUG"):
                raise
            raise self._failure(subcommand, error) from error
        finally:
            if not (self.watch.training or self.trainer.state.finished):
                with suppress(OSError):
                    self.folder.undo()
            self.folder.lock.release()

    def _failure(self, subcommand: str, error: Exception) -> UserError:
        """An error of the program or the machine as one line, its trace in the run's folder."""
        log = write_trace(self.folder.path, error, self.trainer.global_rank)
        go_on = f"; {self.folder.how_to_go_on()}" if subcommand == "fit" else ""
        name, rest = type(error).__name__, f"{memory_advice(error)} (trace: {log}){go_on}"
        said = one_line(error, max(80, LONGEST_LINE - len(name) - len(rest)))
        return UserError(f"{name}: {said}{rest}", FAILED)

    @contextmanager
    def run_errors(self) -> Iterator[None]:
        """Turn errors that the user can fix, raised while the trainer runs, into `UserError`."""
        try:
            with self._restore_errors():
                yield
        except SystemExit as stop:
            by_lightning = who_stopped(stop).startswith("lightning")  # it turns Ctrl-C into exit code 1
            if by_lightning and self.trainer.state.status == TrainerStatus.INTERRUPTED:
                raise KeyboardInterrupt from None
            raise
        except NoSpaceError as error:
            raise UserError(str(error), NO_SPACE) from error
        except user_error_types() as error:
            if not self.watch.running or isinstance(error, MisconfigurationException):
                raise UserError(one_line(error, None if raised_here(error) else 300)) from error
            if isinstance(error, ValueError) and raised_here(error):
                raise UserError(f"{one_line(error)} (UNIFLOW_DEBUG=1 shows where)") from error
            raise

    @contextmanager
    def _restore_errors(self) -> Iterator[None]:
        """Turn whatever is raised while a checkpoint is restored into `UserError`."""
        try:
            yield
        except (NoSpaceError, UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
            if self.watch.running or not any(_RESTORING in file for file in files):
                raise
            what = f"--ckpt_path {self.folder.config.get('ckpt_path')}: the checkpoint does not fit the model"
            raise UserError(f"{what} or its optimizer, or is damaged: {one_line(error, 200)}") from error
