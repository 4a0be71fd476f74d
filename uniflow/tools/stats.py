"""`uniflow stats`: mean and standard deviation of a saved tokenizer's latents, over the data of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from uniflow.callbacks.statistics import split_batches
from uniflow.cli import progress
from uniflow.cli.app import prepare
from uniflow.cli.errors import UserError
from uniflow.cli.recipe_tool import RecipeTool
from uniflow.cli.rundir import RunFolder
from uniflow.core.json_files import read_json_object
from uniflow.data.first import FirstImages, rank_share
from uniflow.metrics import ChannelMoments
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.card import read_run
from uniflow.tokenizer.saving import CONFIG_NAME, write_config

# Override the run's options: all images are measured, in float32, and nothing else is done.
SETTINGS: dict[str, Any] = {
    "precision": "32-true",
    "limit_val_batches": 1.0,
    "overfit_batches": 0.0,
    "fast_dev_run": False,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "callbacks": None,
}


def run_stats(args: list[str]) -> int:
    """Measure with the options `args`."""
    prepare()
    recipe = StatsCLI("stats", stats, args, skip={"trainer", "data", "run"})
    with recipe.run_errors():
        stats(recipe.trainer, recipe.datamodule, recipe.folder.path, **recipe.arguments)
    return 0


def stats(
    trainer: Trainer,
    data: LightningDataModule,
    run: Path,
    tokenizer: str | None = None,
    ckpt_path: str | None = None,
    split: Literal["val", "test"] = "val",
    max_images: int | None = None,
) -> None:
    """Measure mean and standard deviation of a tokenizer's latents, and write them into its folder.

    Args:
        trainer: runs the encoder over the images.
        data: the images.
        run: folder of the run; the card takes its recipe.
        tokenizer: folder of the tokenizer, RUN/tokenizer by default, where RUN is `run`.
        ckpt_path: checkpoint to measure instead (`last`, `best` or a path); its tokenizer is written into the
            folder that `tokenizer` names, with the statistics.
        split: the split whose images are measured.
        max_images: at most this many images over all processes, the first ones; null is all of them.

    Raises:
        FileNotFoundError: if there is no tokenizer to measure.
        ValueError: if there are no images.
    """
    folder = run / "tokenizer" if tokenizer is None else Path(tokenizer)
    if ckpt_path is None and not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"no tokenizer at {folder}: name its folder with --tokenizer DIR")

    def save(measured: Tokenizer) -> None:
        if ckpt_path is None:
            config = read_json_object(folder / CONFIG_NAME)
            write_config(folder, {**config, "latent_statistics": measured.latent_statistics})
        else:
            recipe, _ = read_run(run)
            measured.save_pretrained(folder, model_card_kwargs={"recipe": recipe})
        print(f"{_summary(measured)} -> {folder / CONFIG_NAME}")

    source = Tokenizer.from_pretrained(ckpt_path or folder)
    trainer.validate(LatentMeasurement(source, data, split, max_images, save), verbose=False)


class LatentMeasurement(LightningModule):
    """Encodes a split's images and gives the tokenizer the statistics of its latents.

    Args:
        tokenizer: the tokenizer.
        data: the images.
        split: "val" or "test".
        max_images: at most this many images over all processes; None is all.
        save: called with the tokenizer in the first process when it has its statistics.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        data: LightningDataModule,
        split: str,
        max_images: int | None,
        save: Callable[[Tokenizer], None],
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._data, self._split, self._max_images, self._save = data, split, max_images, save
        self._moments = ChannelMoments()

    def prepare_data(self) -> None:
        self._data.prepare_data()

    def setup(self, stage: str) -> None:
        self._data.trainer = self.trainer
        self._data.setup(stage)

    def teardown(self, stage: str) -> None:
        self._data.teardown(stage)

    def val_dataloader(self) -> Any:
        batches = split_batches(self._data, self._split)
        if self._max_images is None:
            return batches
        return FirstImages(batches, rank_share(self._max_images, self.global_rank, self.trainer.world_size))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        with self.tokenizer.over_time(batch.get("frames", 1)):
            self._moments.update(self.tokenizer.encode(batch["image"]))

    def on_validation_epoch_end(self) -> None:
        moments = self._moments.compute()
        self.tokenizer.set_latent_statistics(moments.mean, moments.std, moments.count)
        if self.trainer.is_global_zero:
            self._save(self.tokenizer)


class StatsCLI(RecipeTool):
    """The options of `uniflow fit` (only data, trainer and run are used), and those of `stats`."""

    needs_data = True

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        options = self.config
        if options.tokenizer is None and (options.run is None or options.ckpt_path is not None):
            raise UserError(
                "name the folder of the tokenizer: --tokenizer DIR, or -c RUN/config.yaml for RUN/tokenizer"
            )
        options.run = options.run or str(Path(options.tokenizer).parent)
        self.folder = RunFolder(self._command, options, self.parser)
        if options.ckpt_path is not None:
            self.folder.prepare()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self._get(self.config_init, "trainer"), **SETTINGS}
        extra: list[Callback] = [self.watch]
        if config.get("enable_progress_bar") is not False:
            extra.append(progress.progress_bar())
        return self._instantiate_trainer({**config, "default_root_dir": str(self.folder.path), **kwargs}, extra)


def _summary(tokenizer: Tokenizer) -> str:
    statistics = tokenizer.latent_statistics
    assert statistics is not None
    ranges = (f"{name} {min(statistics[name]):.4g} to {max(statistics[name]):.4g}" for name in ("mean", "std"))
    return f"{statistics['count']:,} latents of {len(statistics['mean'])} channels: {', '.join(ranges)}"
