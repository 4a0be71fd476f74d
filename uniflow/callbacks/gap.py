"""How far the student is from its teacher: online during fit, with an alarm, and in full at test time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from uniflow.core.distributed import gather_lists
from uniflow.core.numbers import CheckedNumbers, CosineFloat, NonNegativeInt, PercentFloat
from uniflow.encoders.base import EncoderOutput
from uniflow.evaluation.chosen import ChosenImages, image_keys, with_classes
from uniflow.evaluation.probing import classify, pooled, validation_features
from uniflow.layers.precision import full_precision
from uniflow.metrics import Evaluation, leave_one_out_knn_accuracy, linear_cka
from uniflow.training.trainer import is_dry_run

_FEATURES = ("teacher", "student", "latent")


class TeacherGap(CheckedNumbers, Callback):
    """Compares the student and the latents with the teacher, in validation and test, and warns of too wide a gap.

    Features are mean patch tokens, of every block for CKA and of the last for classification, and mean latents. The
    images are those with the smallest `image_digests`, and equal ones count once: no number depends on batch size,
    order or number of processes. Labels are integers from 0 in "label", (B,); without them nothing is classified.

    Validation takes what the task has computed, without another pass of a network:

    - `val_layers/cka_L` and `val/cka`: linear CKA of student and teacher, each layer and the mean of layers;
    - `val/knn_teacher`, `val/knn_student`, `val/knn_latent`: leave-one-out k-NN accuracy;
    - `val/gap_alarm`: 1 if a limit is passed, else 0. An alarm is a warning in the log, too.

    Test has `test_layers/cka_L` and `test/cka` alike, and of k-NN and linear probe, fitted on the validation split and
    scored on the test split, `test/knn_NAME` and `test/probe_NAME` of the same three; `test/gap_knn` and
    `test/gap_probe` are teacher minus student, in points (hundredths). The validation split needs a pass.

    Args:
        online_images: number of images for CKA and for k-NN in validation; 0 switches these off.
        max_images: largest number of images of each split to classify in test; 0 switches that off.
        alarm_below_cosine: alarm if `val/cosine`, the mean over layers, is lower; None never.
        alarm_knn_points: alarm if `val/knn_student` is this many points below `val/knn_teacher`; None never.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        online_images: NonNegativeInt = 512,
        max_images: NonNegativeInt = 10_000,
        alarm_below_cosine: CosineFloat | None = 0.8,
        alarm_knn_points: PercentFloat | None = 10.0,
    ) -> None:
        self.online_images = online_images
        self.max_images = max_images
        self.alarm_below_cosine = alarm_below_cosine
        self.alarm_knn_points = alarm_knn_points
        self._layers = ChosenImages(0)
        self._to_classify = ChosenImages(0)
        self._said_no_classes = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises:
        ValueError: if the task has no teacher to compare with.
        """
        if not hasattr(pl_module, "compared_outputs"):
            raise ValueError(
                f"TeacherGap compares a student with its teacher, and {type(pl_module).__name__} has none: drop it "
                "with --probe null"
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = ChosenImages(0 if trainer.sanity_checking else self.online_images)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = ChosenImages(self.online_images)
        self._to_classify = ChosenImages(self.max_images)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._layers.limit:
            self._layers.update(image_keys(batch), _pooled_layers(**outputs))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._layers.limit or self._to_classify.limit:
            keys = image_keys(batch)
            self._layers.update(keys, _pooled_layers(**outputs))
            self._to_classify.update(keys, _pooled(**outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        chosen = self._layers.gather()
        self._layers = ChosenImages(0)
        _log_cka(pl_module, "val", chosen)
        known = with_classes(chosen)
        accuracies: dict[str, float] = {}
        if len(known["label"]) > 1:
            last = {name: known[name][:, -1] if known[name].ndim == 3 else known[name] for name in _FEATURES}
            accuracies = {name: leave_one_out_knn_accuracy(last[name], known["label"]) for name in _FEATURES}
        elif self.online_images:
            self._say_no_classes()
        for name, accuracy in accuracies.items():
            pl_module.log(f"val/knn_{name}", accuracy, rank_zero_only=True)
        if self.alarm_below_cosine is not None or self.alarm_knn_points is not None:
            alarms = self._alarms(_mean_cosine(pl_module), accuracies)
            pl_module.log("val/gap_alarm", float(bool(alarms)), rank_zero_only=True)
            if alarms:
                rank_zero_warn(
                    f"step {trainer.global_step}: the student has moved away from its teacher: {' and '.join(alarms)}; "
                    "raise model.distillation_weight or lower model.encoder_lr_multiplier"
                )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _log_cka(pl_module, "test", self._layers.gather())
        scored_on = with_classes(self._to_classify.gather())
        self._layers = self._to_classify = ChosenImages(0)
        if self.max_images < 1 or is_dry_run(trainer):
            return
        task: Any = pl_module
        fitted_on: dict[str, Tensor] = {}
        if len(scored_on["label"]):
            fitted_on = validation_features(
                trainer, lambda batch: _pooled(**task.compared_outputs(batch["image"])), self.max_images
            )
        if "student" not in fitted_on:
            self._say_no_classes()
            return
        for classifier, accuracies in classify(fitted_on, scored_on).items():
            for name, accuracy in accuracies.items():
                pl_module.log(f"test/{classifier}_{name}", accuracy, rank_zero_only=True)
            pl_module.log(f"test/gap_{classifier}", _points_below(accuracies), rank_zero_only=True)

    def _alarms(self, cosine: float | None, accuracies: dict[str, float]) -> list[str]:
        """What has passed its limit, in words."""
        alarms = []
        limit = self.alarm_below_cosine
        if limit is not None and cosine is not None and not cosine >= limit:  # not "<": NaN is an alarm as well
            alarms.append(f"cosine {cosine:.3f} (limit {limit:g})")
        limit = self.alarm_knn_points
        if limit is not None and accuracies and (points := _points_below(accuracies)) > limit:
            teacher, student = (f"{100 * accuracies[name]:.1f} %" for name in ("teacher", "student"))
            alarms.append(f"k-NN accuracy {student} against {teacher}, {points:.1f} points (limit {limit:g})")
        return alarms

    def _say_no_classes(self) -> None:
        if not self._said_no_classes:
            rank_zero_info("the data has no integer class for each image ('label'): neither k-NN nor linear probe")
            self._said_no_classes = True


def _pooled_layers(student: EncoderOutput, teacher: EncoderOutput, latents: Tensor) -> dict[str, Tensor]:
    """Mean patch tokens of every block, (B, L, D), and mean latents, (B, C)."""
    stacked = {
        name: torch.stack([full_precision(state).mean(dim=1) for state in output.hidden_states], dim=1)
        for name, output in (("teacher", teacher), ("student", student))
    }
    return {**stacked, "latent": full_precision(latents).mean(dim=(2, 3))}


def _pooled(student: EncoderOutput, teacher: EncoderOutput, latents: Tensor) -> dict[str, Tensor]:
    """Mean patch tokens of the last block, (B, D), and mean latents, (B, C)."""
    return {
        "teacher": pooled(teacher),
        "student": pooled(student),
        "latent": full_precision(latents).mean(dim=(2, 3)),
    }


def _log_cka(task: LightningModule, stage: str, chosen: dict[str, Tensor]) -> None:
    if len(chosen["label"]) < 2:
        return
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(chosen["student"].unbind(1), chosen["teacher"].unbind(1), strict=True)
    values = [linear_cka(student, teacher) for student, teacher in pairs]
    digits = len(str(len(values)))
    for layer, value in enumerate(values, start=1):
        task.log(f"{stage}_layers/cka_{layer:0{digits}d}", value, rank_zero_only=True)
    task.log(f"{stage}/cka", sum(values) / len(values), rank_zero_only=True)


def _mean_cosine(task: LightningModule) -> float | None:
    """`val/cosine`, which the task logs after its callbacks' turn; None without images."""
    evaluation: Evaluation = task.evaluation  # type: ignore[assignment]  # of every task with a teacher
    cosines = [row["cosine"] for row in evaluation.rows]
    sums = gather_lists([(sum(cosines), len(cosines))])
    count = sum(number for _, number in sums)
    return sum(total for total, _ in sums) / count if count else None


def _points_below(accuracies: dict[str, float]) -> float:
    return 100 * (accuracies["teacher"] - accuracies["student"])
