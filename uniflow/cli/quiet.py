"""Switches off messages of Lightning that a user of this package can do nothing about."""

from __future__ import annotations

import logging
import warnings

_WARNINGS = (
    r".*does not have many workers.*",  # advice that ignores how many cores there are
    r".*Checkpoint directory .* exists and is not empty.*",  # the run's folder always holds config and events
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*The dirpath has changed from .*",  # a run's checkpoints always lie in its own folder
    r".*Couldn't infer the batch indices fetched.*",
    r".*It is recommended to use `self.log\(.*sync_dist=True.*",  # evaluations log values that all processes share
    r".*FSDP2-wrapped module .* returned a view tensor.*",  # nobody changes it in place
    r".*You are using `torch.load` with `weights_only=.*",
)
_LOGS = (
    "Tip:",
    "Seed set to",  # config.yaml has it, and the precision
    "Automatic Mixed Precision (AMP)",
    "GPU available: False",  # if there is a GPU, another line says whether it is used
    "`Trainer.fit` stopped: `max_steps=",  # the line before says so: step 600/600
    "`Trainer.fit` stopped: `max_epochs=",
    "Restoring states from the checkpoint path",  # another message says that they have been restored
    "TPU available",
    "HPU available",
    "litlogger",
    "litmodels",
    "was configured so",
    "Trainer already configured with model summary",
)

_LOGGERS = (
    "lightning.pytorch",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)


class _Drop(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in _LOGS)


_DROP = _Drop()


def quiet() -> None:
    """Filter the messages. Idempotent."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _DROP not in logger.filters:
            logger.addFilter(_DROP)
