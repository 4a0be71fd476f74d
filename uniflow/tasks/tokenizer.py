"""The main task: adapt a pretrained encoder into a unified tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from uniflow import callbacks
from uniflow.bottleneck import Bottleneck, MLPBottleneck
from uniflow.bottleneck.layers import last_features
from uniflow.core.numbers import NonNegativeFloat, SamplerSteps
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderSpec, LatentSpec
from uniflow.decoders.base import PixelDecoder
from uniflow.decoders.patch_flow import PatchFlowDecoder
from uniflow.distill import Adaptive, FrozenTeacher, LayerWeighting, cosine_distances, image_cosines, tokens_to_match
from uniflow.encoders.base import EncoderOutput, VisionEncoder
from uniflow.evaluation.clips import add_clip_scores
from uniflow.evaluation.judging import decodings, judge_batch
from uniflow.features import StateCache
from uniflow.layers import ExactLinear
from uniflow.layers.cpu import fuse_attention
from uniflow.layers.precision import full_precision
from uniflow.losses.pixel import PixelLoss
from uniflow.metrics import Evaluation, ReconstructionProtocol, fingerprint, image_digests, slice_means
from uniflow.pictures.drawing import pca_basis, pca_image
from uniflow.sharding.shard import is_sharded
from uniflow.start import Regression
from uniflow.tasks.base import Stage, Task
from uniflow.tasks.cached_states import CachedStates, states_to_keep
from uniflow.tasks.stages import tokenizer_stages
from uniflow.tasks.start import prepare, train_parameters
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.latent_noise import augment_latents
from uniflow.tokenizer.summary import print_summary
from uniflow.training import Schedule, as_schedule
from uniflow.training.trainer import data_of, is_logged_step

EncoderFactory = Callable[[], VisionEncoder]
BottleneckFactory = Callable[[EncoderSpec], Bottleneck]
DecoderFactory = Callable[[LatentSpec], PixelDecoder]


class TokenizerTask(Task):
    """Layer-wise self-distillation against the frozen original plus the decoder's loss (arXiv 2510.10575).

    L = distillation_weight * sum_l w_l d_l + reconstruction_weight * (decoder's losses) + (bottleneck's losses)
        + (pixel losses, each with its own weight) + latent_feature_weight * |A z + b - LN(H_T^L)|^2

    Batches are dicts with "image": (B, 3, H, W), uint8 or float in [0, 1]. One with "frames", a number, is of clips of
    so many images, clip after clip: a temporal decoder then sees earlier frames, and frames may be merged.

    Args:
        encoder: makes the pretrained encoder; the student starts as this, the teacher is a frozen copy.
        bottleneck: hidden states -> latents.
        decoder: latents -> pixels.
        weighting: how much each layer's distance counts.
        distillation_weight: lambda_d, a number or a schedule; while it is 0 the teacher is not run in training.
        reconstruction_weight: lambda_f, on the decoder's losses.
        pixel_losses: losses on the decoder's one-step estimate of the images, such as `Perceptual` and `Adversarial`.
            What they train is in checkpoints, not in the saved tokenizer.
        distill_prefix_tokens: compare class and register tokens too, not only patch tokens.
        encoder_lr_multiplier: factor on the encoder's learning rate.
        noise_tau: in training the decoder sees latents with noise of |N(0, noise_tau^2)| standard deviations, drawn for
            each image, so that it decodes what a generator makes, too (arXiv 2510.11690); 0 is none.
        eval_steps: sampler steps to evaluate; the first one's metrics carry the plain names.
        protocol: how reconstructions are judged, in validation and test; None is `ReconstructionProtocol()`.
        latent_feature_weight: weight of a loss that keeps the features in the latents: the mean squared error of the
            teacher's last hidden state (normalised) as a trained linear map reads it from them. The map belongs to the
            task, not to the tokenizer; `start: regression` sets it, too. Cheap with a frozen encoder.
        start: "random" weights of bottleneck and decoder, or "regression", the best linear tokenizer in closed form,
            with the defaults of `uniflow.start.Regression`, or that class with other settings. Bottleneck and decoder
            need `shortcut: true` for it. Not repeated when a run is resumed.
        shortcut_lr_multiplier: factor on the learning rate of what a regression start has solved, the shortcuts of
            bottleneck and decoder: at the rate of random weights it is lost in a few steps.
        train_only: train only the tokenizer's parameters whose names contain this text, such as "decoder" or
            "temporal"; null trains all.
        state_cache: keeps on disk the hidden states of what is frozen, the encoder or else its teacher, so that crops
            which come again (`data.crops_per_image`) do not run it.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.
    """

    monitor = ("val/psnr", "max")

    tokenizer: Tokenizer
    teacher: FrozenTeacher
    _cached_states: CachedStates | None

    def __init__(
        self,
        encoder: EncoderFactory,
        bottleneck: BottleneckFactory = MLPBottleneck,
        decoder: DecoderFactory = PatchFlowDecoder,
        weighting: LayerWeighting = lazy_instance(Adaptive),  # noqa: B008  # shows in --help and the saved config
        distillation_weight: NonNegativeFloat | Schedule = 1.0,
        reconstruction_weight: NonNegativeFloat = 1.0,
        distill_prefix_tokens: bool = False,
        encoder_lr_multiplier: NonNegativeFloat = 1.0,
        noise_tau: NonNegativeFloat = 0.0,
        eval_steps: Sequence[SamplerSteps] = (1,),
        pixel_losses: list[PixelLoss] | None = None,
        protocol: ReconstructionProtocol | None = None,
        start: Literal["random", "regression"] | Regression = "random",
        shortcut_lr_multiplier: NonNegativeFloat = 0.03,
        latent_feature_weight: NonNegativeFloat = 0.0,
        train_only: str | None = None,
        state_cache: StateCache | None = None,
        **task: Any,
    ) -> None:
        super().__init__(**task)
        if not eval_steps:
            raise ValueError("TokenizerTask.eval_steps is empty: give at least one number of steps")
        self._factories = (encoder, bottleneck, decoder)
        self.weighting = weighting
        self.distillation_weight = as_schedule(distillation_weight, "TokenizerTask.distillation_weight")
        self.reconstruction_weight, self.noise_tau = reconstruction_weight, noise_tau
        self.distill_prefix_tokens = distill_prefix_tokens
        self.encoder_lr_multiplier = encoder_lr_multiplier
        self.shortcut_lr_multiplier = shortcut_lr_multiplier
        self.latent_feature_weight, self.train_only = latent_feature_weight, train_only
        self.state_cache, self._cached_states = state_cache, None
        self.feature_head: ExactLinear | None = None
        self.eval_steps = tuple(eval_steps)
        self.pixel_losses = nn.ModuleList(pixel_losses or [])
        if start not in ("random", "regression") and not isinstance(start, Regression):
            raise ValueError(f"start must be random, regression or a uniflow.start.Regression, got {start!r}")
        self.start = Regression() if start == "regression" else None if start == "random" else start
        self.protocol = protocol or ReconstructionProtocol()
        self.evaluation = Evaluation(self.protocol)
        self.evaluation_settings: dict[str, Any] = {}

    @classmethod
    def default_callbacks(cls) -> dict[str, type[Callback]]:
        return {
            "codebook": callbacks.CodebookUsage,
            "probe": callbacks.TeacherGap,
            "latents": callbacks.LatentWriter,
            "statistics": callbacks.LatentStatistics,
            "export": callbacks.TokenizerExport,
        }

    def build(self) -> None:
        make_encoder, make_bottleneck, make_decoder = self._factories
        encoder = make_encoder()
        bottleneck = make_bottleneck(encoder.spec)
        # Outside the module tree: the teacher does not belong to checkpoints, the optimizer or a sharded student.
        object.__setattr__(self, "teacher", FrozenTeacher(encoder))
        self.tokenizer = Tokenizer(encoder, bottleneck, make_decoder(bottleneck.spec))
        if self.train_only is not None:
            train_parameters(self.tokenizer, self.train_only)
        if self.latent_feature_weight > 0:
            latent = bottleneck.spec
            merged = (latent.patch_size // encoder.spec.patch_size) ** 2
            self.feature_head = ExactLinear(latent.channels, merged * encoder.spec.embed_dim)

    def parts(self) -> Iterator[nn.Module]:
        tokenizer = self.tokenizer
        heads = [] if self.feature_head is None else [self.feature_head]
        networks = [tokenizer.encoder, tokenizer.bottleneck, tokenizer.decoder, *heads]
        return iter([*networks, *self.pixel_losses, self.teacher])

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and not is_sharded(self):
            self.train_in_low_precision(torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16)

    def on_train_start(self) -> None:
        super().on_train_start()
        # Not on_fit_start: with sharding it comes before a checkpoint is restored.
        if self.global_step == 0 and not self.trainer.ckpt_path and self.init_from is None:
            prepare(self.trainer, self.tokenizer, self.start, self.feature_head, self._first_reconstruction)
        if self.state_cache is not None:
            spec, trained = self.tokenizer.encoder.spec, self.encoder_is_trained
            needed = states_to_keep(self.tokenizer.bottleneck, spec, trained, self.distill_prefix_tokens)
            self._cached_states = CachedStates(self.state_cache, self.trainer, self.frozen_network, spec, needed)

    def _first_reconstruction(self, images: Tensor) -> Tensor:
        """What the first of `eval_steps` makes of images (B, 3, H, W), in [0, 1]."""
        _, decoded = next(self.decodings(images, self.tokenizer.encode(images)))
        return decoded[..., : images.shape[-2], : images.shape[-1]]

    def train_in_low_precision(self, dtype: torch.dtype) -> None:
        """Prepare for training under autocast to `dtype`: the teacher's weights are stored as autocast rounds them, and
        on CPUs attention in bfloat16 is written out, which is faster there."""
        self.teacher.round_weights(dtype)
        if self.device.type == "cpu" and dtype == torch.bfloat16:
            for network in (self.tokenizer, self.teacher):
                fuse_attention(network, False)

    def on_validation_start(self) -> None:
        self.teacher.to(self.device)

    def on_test_start(self) -> None:
        self.teacher.to(self.device)

    def lr_multiplier(self, name: str) -> float:
        if name.startswith("tokenizer.encoder."):
            return self.encoder_lr_multiplier
        solved = self.start is not None and (".shortcut." in name or name.startswith("feature_head."))
        return self.shortcut_lr_multiplier if solved else 1.0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images = batch["image"]
        student = self.tokenizer.encoder(images) if self.encoder_is_trained else self.frozen_states(images)
        strength = self.distillation_weight(self.progress)
        distills = strength > 0 and self.encoder_is_trained
        needs_teacher = self.encoder_is_trained and (distills or self.feature_head is not None)
        with self.tokenizer.over_time(batch.get("frames", 1)):
            latents, losses = self.tokenizer.bottleneck(student)
            terms = {f"bottleneck/{name}": loss for name, loss in losses.items()}
            of_decoder, on_pixels = self.decoder_losses(latents, to_unit_range(images))
            terms |= {name: self.reconstruction_weight * loss for name, loss in of_decoder.items()} | on_pixels
            teacher = self.frozen_states(images) if needs_teacher else student  # a frozen student is its own teacher
            if distills:
                terms["distillation"] = strength * self.distillation_loss(student, teacher)
            if self.feature_head is not None:
                terms["latent_features"] = self.latent_feature_weight * self.latent_feature_loss(latents, teacher)
        total = torch.stack([full_precision(term) for term in terms.values()]).sum()
        if self.train_only is not None and not total.requires_grad:
            why = f"train_only {self.train_only!r} of a decoder over time needs clips, such as those of SceneClips"
            raise ValueError(f"nothing that this batch uses is trained: {why}")
        self.log("train/loss", total, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        if self.state_cache is not None:
            self.log("train/states_from_cache", self.state_cache.share_found)
        return total

    def frozen_states(self, images: Tensor) -> EncoderOutput:
        """Hidden states of what is frozen in this training, the encoder or else its teacher, for (B, 3, H, W)."""
        return (self._cached_states or self.frozen_network)(images)

    @property
    def frozen_network(self) -> nn.Module:
        """The encoder if it is frozen, else the teacher."""
        return self.teacher if self.encoder_is_trained else self.tokenizer.encoder

    def decoder_losses(self, latents: Tensor, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The decoder's training losses, not yet weighted, and the pixel losses, which weight themselves.

        Args:
            latents: (B, C, h, w), of clips fewer than images; noise of `noise_tau` is added here.
            images: float in [0, 1], (B, 3, H, W).

        Raises:
            ValueError: if two losses have the same name.
        """
        latents = self.tokenizer.bottleneck.to_frames(augment_latents(self.tokenizer, latents, self.noise_tau))
        if not self.pixel_losses:
            return self.tokenizer.decoder.loss(latents, images), {}
        of_decoder, estimate = self.tokenizer.decoder.loss_and_estimate(latents, images)
        on_pixels: dict[str, Tensor] = {}
        for pixel_loss in self.pixel_losses:
            losses = pixel_loss(estimate, images)
            if twice := losses.keys() & (of_decoder.keys() | on_pixels.keys()):
                raise ValueError(f"pixel_losses: {type(pixel_loss).__name__} gives a second loss named {min(twice)!r}")
            on_pixels |= losses
        return of_decoder, on_pixels

    def latent_feature_loss(self, latents: Tensor, teacher: EncoderOutput) -> Tensor:
        """Mean squared error of the teacher's normalised last hidden state as read from the latents (B, C, h, w)."""
        assert self.feature_head is not None
        target = last_features(teacher, latents.shape[-2]).detach()
        prediction = self.feature_head(self.tokenizer.bottleneck.to_frames(latents).flatten(2).transpose(1, 2))
        return (prediction - target.to(prediction.dtype)).square().mean()

    def distillation_loss(self, student: EncoderOutput, teacher: EncoderOutput) -> Tensor:
        """sum_l w_l d_l between the student's hidden states and the teacher's."""
        distances = self.distances(student, teacher)
        # Every process weighs the layers by the distances of the whole batch, so that the number of processes does
        # not change the loss.
        everywhere = self.trainer.strategy.reduce(distances.detach().clone(), reduce_op="mean")
        weights = self.weighting(everywhere, self.progress)
        if is_logged_step(self.trainer):
            self.log_dict({f"layers/distance_{name}": value for name, value in self._by_layer(everywhere)})
            self.log_dict({f"layers/weight_{name}": value for name, value in self._by_layer(weights)})
        return (weights.to(distances.dtype) * distances).sum()

    def distances(self, student: EncoderOutput, teacher: EncoderOutput) -> Tensor:
        """d_l of every block, (L,), in [0, 2]."""
        prefix = self.distill_prefix_tokens
        return cosine_distances(tokens_to_match(student, prefix=prefix), tokens_to_match(teacher, prefix=prefix))

    @property
    def encoder_is_trained(self) -> bool:
        """Whether any of the encoder's parameters is trained."""
        return any(p.requires_grad for p in self.tokenizer.encoder.parameters())

    def on_validation_epoch_start(self) -> None:
        self.evaluation = Evaluation(self.protocol, with_sets=False)

    def on_test_epoch_start(self) -> None:
        self.evaluation = Evaluation(self.protocol)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Latents of the batch, with the labels of its images or frames if it has any."""
        with self.tokenizer.over_time(batch.get("frames", 1)):
            result = {"latents": self.tokenizer.encode(batch["image"])}
        return result | {key: batch[key] for key in ("label",) if key in batch}

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _evaluate(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Judge one batch; what the networks gave goes on to callbacks."""
        images, frames, prefix = batch["image"], batch.get("frames", 1), self.distill_prefix_tokens
        with self.tokenizer.over_time(frames):
            outputs = self.compared_outputs(images)
            latents = outputs["latents"]
            decoded = judge_batch(self.evaluation, self.tokenizer, images, latents, self.eval_steps, batch.get("name"))
            outputs["latents"] = self.tokenizer.bottleneck.to_frames(latents)  # callbacks want one of each image
        add_clip_scores(self.evaluation.rows, decoded, images, frames)
        student, teacher = (tokens_to_match(outputs[name], prefix=prefix) for name in ("student", "teacher"))
        cosines = image_cosines(student, teacher)
        self.evaluation.add_values("cosine", cosines.mean(dim=0))
        for name, cosine in self._by_layer(cosines):
            self.evaluation.add_values(f"cosine_{name}", cosine)
        return outputs

    def compared_outputs(self, images: Tensor) -> dict[str, Any]:
        """What the networks give for images (B, 3, H, W): "student" and "teacher", `EncoderOutput`s, and "latents"."""
        student, teacher = self.tokenizer.encoder(images), self.teacher(images)
        latents, _ = self.tokenizer.bottleneck(student)
        return {"student": student, "teacher": teacher, "latents": latents}

    def _log_evaluation(self, stage: str) -> None:
        for name, value in self.evaluation.compute().items():
            group = f"{stage}_layers" if name.startswith("cosine_") else stage
            self.log(f"{group}/{name}", value, rank_zero_only=True)
        data = data_of(self.trainer)
        crops = data.crops() if hasattr(data, "crops") else {}
        precision = str(self.trainer.precision)
        self.evaluation_settings = self.evaluation.settings(**crops, steps=list(self.eval_steps), precision=precision)

    def report(self) -> dict[str, Any]:
        """The protocol and its fingerprint: numbers with different fingerprints are not comparable."""
        settings = self.evaluation_settings
        return {"protocol/fingerprint": fingerprint(settings), "protocol/settings": settings}

    def report_tables(self) -> dict[str, list[dict[str, Any]]]:
        return {"images": self.evaluation.rows, "slices": slice_means(self.evaluation.rows)}

    def decodings(self, images: Tensor, latents: Tensor) -> Iterator[tuple[int, Tensor]]:
        """For each of `eval_steps` the number and the images in [0, 1], as evaluation decodes them."""
        decoded = decodings(self.tokenizer, latents, image_digests(images), self.eval_steps, self.protocol.noise_seed)
        return zip(self.eval_steps, (images for _, images in decoded), strict=True)

    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]:
        """Originals, reconstructions, and the last hidden states in the teacher's three principal colours."""
        images = batch["image"][:count]
        outputs = self.compared_outputs(images)
        rows = {"original": to_unit_range(images)}
        for steps, decoded in self.decodings(images, outputs["latents"]):
            rows[f"reconstruction, {steps} step{'s' if steps > 1 else ''}"] = decoded
        basis = pca_basis(outputs["teacher"].feature_map())
        size = (images.shape[-2], images.shape[-1])
        for name in ("teacher", "student"):
            rows[name] = pca_image(outputs[name].feature_map(), basis, size)
        return rows

    def print_summary(self, image_size: int | tuple[int, int] | None) -> bool:
        print_summary(self.tokenizer, image_size)
        return True

    def stages(self, images: Tensor) -> Iterator[Stage]:
        distills = self.encoder_is_trained and self.distillation_weight(1.0) > 0
        yield from tokenizer_stages(self.tokenizer, list(self.pixel_losses), self.teacher.encoder, distills, images)

    def use_full_cost(self) -> None:
        # A schedule may begin or end without a teacher: the plan is for the time when it runs.
        self.distillation_weight = as_schedule(max(self.distillation_weight(tenth / 10) for tenth in range(11)))

    def rounded_networks(self) -> list[nn.Module]:
        return [self.teacher]

    def _by_layer(self, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each block's number, 1 = first, padded with zeros so that names sort, and its value."""
        digits = len(str(self.tokenizer.encoder.spec.num_layers))
        return ((f"{layer:0{digits}d}", value) for layer, value in enumerate(values, start=1))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What Tokenizer.from_pretrained needs to rebuild the model from the checkpoint alone.
        checkpoint["tokenizer"] = self.tokenizer.config()
