"""How far the student is from its teacher: online during fit, with an alarm, and in full at test time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from uniflow.core.distributed import gather_lists
from uniflow.encoders.base import EncoderOutput
from uniflow.layers.precision import full_precision
from uniflow.metrics import image_digests, knn_accuracy, leave_one_out_knn_accuracy, linear_cka, linear_probe
from uniflow.tasks.tokenizer import TokenizerTask

_FEATURES = ("teacher", "student", "latent")
_NO_CLASS = -1  # an image whose label is no class
_Key = tuple[str, int]  # an image's digest, and its class


class TeacherGap(Callback):
    """Compares the student and the latents with the teacher, in validation and test, and warns of too wide a gap.

    Features are mean patch tokens, of every block for CKA and of the last for classification, and mean latents. The
    images are those with the smallest `image_digests`, and equal ones count once: no number depends on batch size,
    order or number of processes. Labels are integers from 0 in "label", (B,); without such there is no classification.

    Validation takes what the task has computed, without another pass of a network:

    - `val_layers/cka_L` and `val/cka`: linear CKA of student and teacher, each layer and the mean of layers;
    - `val/knn_teacher`, `val/knn_student`, `val/knn_latent`: leave-one-out k-NN accuracy;
    - `val/gap_alarm`: 1 if a limit is passed, else 0. An alarm is a warning in the log, too.

    Test has `test_layers/cka_L` and `test/cka` alike, and of k-NN and linear probe, fitted on the validation split and
    scored on the test split, `test/knn_NAME` and `test/probe_NAME` of the same three; `test/gap_knn` and
    `test/gap_probe` are teacher minus student, in points (hundredths). The validation split needs a pass.

    Args:
        online_images: images that CKA, and k-NN in validation, are computed of; 0 switches these off.
        max_images: at most so many images of each split to classify in test; 0 switches that off.
        alarm_below_cosine: alarm if `val/cosine`, the mean over layers, is lower; None never.
        alarm_knn_points: alarm if `val/knn_student` is so many points below `val/knn_teacher`; None never.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        online_images: int = 512,
        max_images: int = 10_000,
        alarm_below_cosine: float | None = 0.8,
        alarm_knn_points: float | None = 10.0,
    ) -> None:
        for name, images in (("online_images", online_images), ("max_images", max_images)):
            if images < 0:
                raise ValueError(f"TeacherGap.{name} must be at least 0, got {images}")
        if alarm_below_cosine is not None and not -1 <= alarm_below_cosine <= 1:
            raise ValueError(f"TeacherGap.alarm_below_cosine must lie in [-1, 1] or be null, got {alarm_below_cosine}")
        if alarm_knn_points is not None and not 0 <= alarm_knn_points <= 100:
            raise ValueError(f"TeacherGap.alarm_knn_points must lie in [0, 100] or be null, got {alarm_knn_points}")
        self.online_images = online_images
        self.max_images = max_images
        self.alarm_below_cosine = alarm_below_cosine
        self.alarm_knn_points = alarm_knn_points
        self._layers = _Chosen(0)
        self._to_classify = _Chosen(0)
        self._said_no_classes = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = _Chosen(0 if trainer.sanity_checking else self.online_images)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = _Chosen(self.online_images)
        self._to_classify = _Chosen(self.max_images, last_only=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(pl_module, TokenizerTask) and self._layers.limit:
            self._layers.update(_keys(batch), **outputs)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(pl_module, TokenizerTask) and (self._layers.limit or self._to_classify.limit):
            keys = _keys(batch)
            self._layers.update(keys, **outputs)
            self._to_classify.update(keys, **outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, TokenizerTask) or trainer.sanity_checking:
            return
        found = self._layers.gather()
        self._layers = _Chosen(0)
        _log_cka(pl_module, "val", found)
        known = _with_classes(found)
        accuracies: dict[str, float] = {}
        if len(known["label"]) > 1:
            accuracies = {name: leave_one_out_knn_accuracy(known[name], known["label"]) for name in _FEATURES}
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
        if not isinstance(pl_module, TokenizerTask):
            return
        _log_cka(pl_module, "test", self._layers.gather())
        scored_on = _with_classes(self._to_classify.gather())
        self._layers = self._to_classify = _Chosen(0)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time
        if self.max_images < 1 or trainer.fast_dev_run:  # type: ignore[attr-defined]  # as above
            return
        fitted_on: dict[str, Tensor] | None = None
        if len(scored_on["label"]) and data is not None and is_overridden("val_dataloader", data):
            fitted_on = _with_classes(self._of_validation_split(pl_module, data).gather())
        if fitted_on is None or not len(fitted_on["label"]):
            self._say_no_classes()
            return
        for classifier, accuracy_of in (("knn", knn_accuracy), ("probe", linear_probe)):
            accuracies = {
                name: accuracy_of(fitted_on[name], fitted_on["label"], scored_on[name], scored_on["label"])
                for name in _FEATURES
            }
            for name, accuracy in accuracies.items():
                pl_module.log(f"test/{classifier}_{name}", accuracy, rank_zero_only=True)
            pl_module.log(f"test/gap_{classifier}", _points_below(accuracies), rank_zero_only=True)

    @torch.no_grad()
    def _of_validation_split(self, task: TokenizerTask, data: LightningDataModule) -> _Chosen:
        data.setup("validate")  # a test run may have set up the test split only
        loaders: Any = data.val_dataloader()
        chosen = _Chosen(self.max_images, last_only=True)
        for batch in chain.from_iterable(loaders if isinstance(loaders, list | tuple) else [loaders]):
            images = batch["image"].to(task.device)
            with task.trainer.precision_plugin.forward_context():
                student, teacher = task.tokenizer.encoder(images), task.teacher(images)
                latents, _ = task.tokenizer.bottleneck(student)
            chosen.update(_keys(batch), student, teacher, latents)
        return chosen

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


class _Chosen:
    """The features of those images, of all that are fed, whose keys are smallest; equal keys count once.

    Args:
        limit: how many images; no more are ever held.
        last_only: leave out all hidden states but the last.
    """

    def __init__(self, limit: int, last_only: bool = False) -> None:
        self.limit = limit
        self._last_only = last_only
        self._rows: dict[_Key, dict[str, Tensor]] = {}

    def update(self, keys: Sequence[_Key], student: EncoderOutput, teacher: EncoderOutput, latents: Tensor) -> None:
        """Feed a batch of B images with their B keys, the encoders' outputs and latents (B, C, h, w)."""
        smallest = set(sorted({*self._rows, *keys})[: self.limit])
        for key in self._rows.keys() - smallest:
            del self._rows[key]
        new = {key: row for row, key in enumerate(keys) if key in smallest and key not in self._rows}
        if not new:
            return
        index = torch.tensor(list(new.values()), device=latents.device)
        features = {
            "teacher": self._pooled(teacher, index),
            "student": self._pooled(student, index),
            "latent": full_precision(latents[index]).mean(dim=(2, 3)).cpu(),
        }
        for row, key in enumerate(new):
            # Copies, since a view would keep the whole batch.
            self._rows[key] = {name: tensor[row].clone() for name, tensor in features.items()}

    def gather(self) -> dict[str, Tensor]:
        """The N chosen of all processes, which all have to call, sorted by key.

        "teacher" and "student" (N, L, D) or (N, D), "latent" (N, C) and "label" (N,), which is -1 without a class.
        Only "label" is there if N is 0.
        """
        keys = sorted(set(gather_lists(list(self._rows))))[: self.limit]
        own = [key for key in keys if key in self._rows]
        stacked = {name: torch.stack([self._rows[key][name] for key in own]) for name in _FEATURES} if own else {}
        parts = gather_lists([(own, stacked)] if own else [])
        place = {key: row for row, key in enumerate(chain.from_iterable(found for found, _ in parts))}
        order = [place[key] for key in keys]
        label = torch.tensor([number for _, number in keys], dtype=torch.int64)
        features = {name: torch.cat([part[name] for _, part in parts])[order] for name in _FEATURES if parts}
        return features | {"label": label}

    def _pooled(self, output: EncoderOutput, index: Tensor) -> Tensor:
        """Mean patch tokens (B, L, D), or (B, D) of the last block alone."""
        states = output.hidden_states[-1:] if self._last_only else output.hidden_states
        pooled = torch.stack([full_precision(state[index]).mean(dim=1) for state in states], dim=1).cpu()
        return pooled[:, 0] if self._last_only else pooled


def _keys(batch: dict[str, Any]) -> list[_Key]:
    """Digest and class of every image; the class is -1 where "label" holds none."""
    digests, label = image_digests(batch["image"]), batch.get("label")
    if not isinstance(label, Tensor) or label.shape != (len(digests),) or not _is_integer(label):
        return [(digest, _NO_CLASS) for digest in digests]
    return list(zip(digests, label.clamp_min(_NO_CLASS).tolist(), strict=True))


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _with_classes(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of images with a class; of several layers the last."""
    known = found["label"] != _NO_CLASS
    return {name: (tensor[:, -1] if tensor.ndim == 3 else tensor)[known] for name, tensor in found.items()}


def _log_cka(task: TokenizerTask, stage: str, found: dict[str, Tensor]) -> None:
    if len(found["label"]) < 2:
        return
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(found["student"].unbind(1), found["teacher"].unbind(1), strict=True)
    values = [linear_cka(student, teacher) for student, teacher in pairs]
    digits = len(str(len(values)))
    for layer, value in enumerate(values, start=1):
        task.log(f"{stage}_layers/cka_{layer:0{digits}d}", value, rank_zero_only=True)
    task.log(f"{stage}/cka", sum(values) / len(values), rank_zero_only=True)


def _mean_cosine(task: TokenizerTask) -> float | None:
    """`val/cosine`, which the task logs after its callbacks' turn; None without images."""
    own = [row["cosine"] for row in task.evaluation.rows]
    sums = gather_lists([(sum(own), len(own))])
    count = sum(number for _, number in sums)
    return sum(total for total, _ in sums) / count if count else None


def _points_below(accuracies: dict[str, float]) -> float:
    return 100 * (accuracies["teacher"] - accuracies["student"])
