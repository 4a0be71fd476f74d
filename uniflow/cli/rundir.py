"""A run lives in one folder: config.yaml, TensorBoard events, and what the callbacks write."""

from __future__ import annotations

import datetime
import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from uniflow.cli.checkpoint import AtomicCheckpointIO, LastCheckpoint
from uniflow.cli.errors import UserError
from uniflow.core.atomic import existing, recover, replacing
from uniflow.core.files import open_regular
from uniflow.core.lock import FolderLock
from uniflow.sharding.checkpoint import is_sharded_checkpoint
from uniflow.training.trainer import is_dry_run

CONFIG = "config.yaml"
EVENTS = "events.out.tfevents.*"
SHORTHANDS = ("last", "best")
# The run's last checkpoint if it has one, else a fresh start.
AUTO = "auto"
# Values of --ckpt_path that Lightning finds itself.
ELSEWHERE = ("hpc", "registry")


class RunFolder:
    """The folder of one run.

    Args:
        command: fit, validate, test or predict.
        config: the parsed options of that command; `run` and `ckpt_path` are filled in.
        parser: the parser that they came from, which also writes them.
    """

    def __init__(self, command: str, config: Namespace, parser: LightningArgumentParser) -> None:
        self.command = command
        self.config = config
        self.parser = parser
        if config.trainer.get("default_root_dir") is not None:
            raise UserError("trainer.default_root_dir: the run's folder is set with --run DIR")
        if config.get("weights_only") is False:
            raise UserError(
                "weights_only: false would run code that a checkpoint holds; leave it out, or use a .safetensors file"
            )
        for name in ("run", "ckpt_path"):
            if isinstance(value := config.get(name), str) and not value.strip():
                raise UserError(f"--{name} is empty: name a path, or leave it out")
        self.named = config.run is not None
        if not self.named:
            config.run = _default_name()
        self.path = Path(config.run)
        file = next((path for path in (self.path, *self.path.parents) if path.exists() and not path.is_dir()), None)
        if file is not None:
            raise UserError(f"--run {self.path}: {file} is a file, not a folder")
        self.lock = FolderLock(self.path)
        self._events: set[Path] = set()
        self._old_config: bytes | None = None
        self._saved = False

    def prepare(self) -> None:
        """Check that the folder and the checkpoint are as the command needs them."""
        checkpoint = self.config.get("ckpt_path")
        if self.command == "fit" and _process_rank() == 0:
            self._lock()
            self._events = set(self.path.glob(EVENTS))
            for name in SHORTHANDS:
                recover(self.path / f"{name}.ckpt")
            recover(self.path / CONFIG)
        if checkpoint == AUTO:
            self.config.ckpt_path = self._last_if_any()
        elif checkpoint is not None:
            self.config.ckpt_path = self._find(checkpoint)
        elif self.command == "fit":
            self._refuse_to_overwrite()
        else:
            rank_zero_info(f"no --ckpt_path: {self.command} takes the model as it is built, not as it was trained")

    def _lock(self) -> None:
        """Become the only writer of the folder, before anything in it is touched."""
        if self.config.trainer.get("fast_dev_run"):
            return
        if (holder := self.lock.acquire()) is not None:
            raise UserError(
                f"{self.path} is being written by {holder}: wait for it, stop it, or choose another folder with --run"
            )

    def how_to_go_on(self) -> str:
        """Where the work lies, and the command that continues it."""
        config, last = shlex.quote(str(self.path / CONFIG)), self.path / "last.ckpt"
        if not existing(last):
            return f"nothing is saved in {self.path} yet"
        return f"the run is in {self.path}; go on with: uniflow fit -c {config} --ckpt_path last"

    def results(self) -> str:
        """What a finished fit has left, and the command that tests it."""
        names = [name for name in ("tokenizer", "best.ckpt", "last.ckpt") if (self.path / name).exists()]
        config = shlex.quote(str(self.path / CONFIG))
        return f"{self.path}: {', '.join(names)}; test it with: uniflow test -c {config} --ckpt_path last"

    def _last_if_any(self) -> str | None:
        if self.command != "fit":
            raise UserError(f"--ckpt_path {AUTO} is for fit; {self.command} takes last, best or a path")
        if not self.named:
            raise UserError(f"--ckpt_path {AUTO}: name the folder that all attempts share, --run DIR")
        if existing(self.path / "last.ckpt"):
            return self._find("last")
        rank_zero_info(f"--ckpt_path {AUTO}: {self.path} has no last.ckpt, so training starts")
        return None

    def _find(self, checkpoint: str) -> str:
        if checkpoint.startswith(ELSEWHERE) or "://" in checkpoint:
            return checkpoint
        path = self.path / f"{checkpoint}.ckpt" if checkpoint in SHORTHANDS else Path(checkpoint)
        available = existing(path)
        if available is None:
            raise UserError(f"--ckpt_path {checkpoint}: there is no checkpoint {path}")
        if self.command != "fit":  # a fit has moved it back, or its first process does
            path = available
        if not (is_sharded_checkpoint(available) if available.is_dir() else _is_archive(available)):
            raise UserError(f"--ckpt_path {checkpoint}: {path} is not a checkpoint")
        if available.is_dir() and self.command == "fit" and not self._shards():
            raise UserError(
                f"--ckpt_path {checkpoint}: {path} belongs to a sharded run; resume it with --trainer.strategy fsdp2; "
                "one process is enough"
            )
        return str(path)

    def _shards(self) -> bool:
        strategy = self.config.trainer.get("strategy")
        return "fsdp2" in str(strategy.get("class_path") if isinstance(strategy, Namespace) else strategy).lower()

    def _refuse_to_overwrite(self) -> None:
        if self.config.trainer.get("fast_dev_run") or not (self.path / CONFIG).exists() or _process_rank() != 0:
            return
        last = self.path / "last.ckpt"
        resume = f"resume it with --ckpt_path {last}" if last.exists() else "delete it"
        raise UserError(f"{self.path} already holds a run: {resume}, or choose another folder with --run NAME")

    def trainer_settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the `Trainer` that put everything into the folder."""
        settings: dict[str, Any] = {"default_root_dir": str(self.path)}
        if config.get("logger") in (None, True):
            settings["logger"] = _TensorBoard(str(self.path))
        return settings

    def undo(self) -> None:
        """Put back what a fit has written that was refused before its first step: the old config.yaml, or none."""
        if self.lock.held:  # else another process may be writing here
            for events in set(self.path.glob(EVENTS)) - self._events:
                events.unlink()
        if self._saved and self._old_config is None:
            (self.path / CONFIG).unlink(missing_ok=True)
        elif self._saved and self._old_config is not None:
            with replacing(self.path / CONFIG) as new:
                new.write_bytes(self._old_config)

    def saver(self) -> Callback:
        """The callback that writes config.yaml once everything has been built."""
        return _SaveConfig(self)

    def save_config(self) -> None:
        """Write config.yaml: all options, with nothing left to a default; the checkpoint to resume from is left out."""
        config = self.config.clone()
        config.ckpt_path = None
        old = self.path / CONFIG
        self._old_config = old.read_bytes() if old.is_file() else None
        self._saved = True
        with replacing(self.path / CONFIG) as new:
            # Not checked: it has been when it was parsed.
            self.parser.save(config, str(new), skip_unset=False, skip_validation=True, overwrite=True, multifile=False)


class _TensorBoard(TensorBoardLogger):
    """Events directly in the run's folder, and no hparams.yaml beside config.yaml."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def save(self) -> None:
        self.experiment.flush()


class _SaveConfig(Callback):
    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # another one is the user's choice
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # torch takes another optimizer's state without a word, and fails at the first step.
        for optimizer in trainer.optimizers:
            settings = set(optimizer.defaults) - {
                "differentiable"
            }  # torch adds that one when it restores any optimizer
            missing = sorted({name for group in optimizer.param_groups for name in settings - set(group)})
            if missing:
                raise MisconfigurationException(
                    f"the checkpoint holds the state of another optimizer than {type(optimizer).__name__}: it has no "
                    f"{', '.join(missing)}; go on with the run's own optimizer"
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before all other callbacks: what they do at the end may fail, and the last steps are saved by then.
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, LastCheckpoint):
                checkpoint.on_train_end(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not is_dry_run(trainer):
            self.folder.save_config()


class StageWatch(Callback):
    """Knows whether the first batch has been reached: errors before it are the user's to fix."""

    running = False
    training = False

    def _start(self, *args: Any, **kwargs: Any) -> None:
        self.running = True

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _start

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.running = self.training = True


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as torch.save writes them; a named pipe or a device is not opened."""
    try:
        with open_regular(path) as file:
            return zipfile.is_zipfile(file)
    except OSError as error:
        raise UserError(f"the checkpoint {error}") from error


def _process_rank() -> int:
    """This process's number, before Lightning has counted; 0 where nothing was started in parallel."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))))


def _default_name() -> str:
    """runs/TIME, the same in all processes of a run."""
    # Processes that Lightning itself starts inherit the name; those of torchrun or SLURM start at once.
    name = os.environ.get("UNIFLOW_RUN") if "LOCAL_RANK" in os.environ else None
    if name is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes were started: name the folder that they share, --run NAME")
    if name is None:
        name = base = str(Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        number = 2
        while Path(name).exists():  # a run that was started within the same second
            name, number = f"{base}-{number}", number + 1
    os.environ["UNIFLOW_RUN"] = name
    return name
