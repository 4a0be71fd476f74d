"""Training a generator of latents: a frozen tokenizer, a condition and a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from uniflow.conditions import Condition, NoCondition
from uniflow.core.numbers import NonNegativeFloat
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.evaluation.generated import GeneratedImages, judge_generated
from uniflow.evaluation.probing import validation_features
from uniflow.evaluation.prompts import PromptAdherence
from uniflow.generators import DiT, FeatureAlignment, Generator, LatentGenerator, LatentSpace
from uniflow.generators.cached import accepted_hashes, check_cached, take_decoder
from uniflow.generators.model import check_tokenizer, decode_latents
from uniflow.metrics import Averages, EncoderFeatures, FeatureExtractor, PictureFeatures, image_digests, noise_for, psnr
from uniflow.sharding.shard import full_state_dict
from uniflow.tasks.base import Stage, Task
from uniflow.tasks.start import train_batches
from uniflow.tokenizer import Tokenizer
from uniflow.training.trainer import data_of, is_dry_run

GeneratorFactory = Callable[[LatentSpec, ConditionSpec], LatentGenerator]
SpaceFactory = Callable[[LatentSpec], LatentSpace]
AlignmentFactory = Callable[[int, int], FeatureAlignment]


class GenerationTask(Task):
    """Trains a generator of normalised latents; the run leaves `RUN/generator`.

    Batches are dicts with "image" (B, 3, H, W), uint8 or float in [0, 1], and what the condition reads; or with
    "latent" (B, C, h, w), normalised, in place of the image (`CachedLatents`), then the encoder does not run. The
    tokenizer is frozen and outside the module tree. Validation logs `val/loss`, the loss at the network's
    `validation_times` with noise of each image's own. `uniflow test` generates an image for the condition of each test
    image, and logs for each of `eval_guidance` what `judge_generated` gives; the second strength of guidance has the
    suffix `_gSTRENGTH`.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or its name on the hub.
        generator: makes the network from the specs of latents and condition.
        condition: makes the condition.
        space: makes the map from the latents to what the network makes; `PictureSpace` is fitted before the first step.
        alignment: makes a head that predicts the whole latents from the channels of these and of the network's tokens;
            None is none.
        decoder: a tokenizer of the same encoder and bottleneck, whose decoder takes the place of the tokenizer's; in a
            test, too, as the latents are the same.
        eval_guidance: strengths of guidance that the test judges.
        judge: makes the extractor of the features that the test compares.
        prompt_judge: makes the extractor of the features from which the test reads what captions say, where the data
            has "facts"; see `uniflow.evaluation.prompts`.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.

    Raises:
        ValueError: if the tokenizer has no latent statistics, or none of the latents that the generator makes, or the
            decoder is for other latents.
    """

    monitor = ("val/loss", "min")

    def __init__(
        self,
        tokenizer: str,
        generator: GeneratorFactory = DiT,
        condition: Callable[[], Condition] = NoCondition,
        space: SpaceFactory = LatentSpace,
        alignment: AlignmentFactory | None = None,
        decoder: str | None = None,
        eval_guidance: Sequence[NonNegativeFloat] = (1.0,),
        judge: Callable[[], FeatureExtractor] = EncoderFeatures,
        prompt_judge: Callable[[], FeatureExtractor] = PictureFeatures,
        **task: Any,
    ) -> None:
        super().__init__(**task)
        self._decoder_path = decoder
        self._path, self._make_network, self._make_condition = tokenizer, generator, condition
        self._make_space, self._make_alignment = space, alignment
        self.eval_guidance, self._make_judge = list(eval_guidance), judge
        self._make_prompt_judge = prompt_judge
        self._averages = Averages()
        self.grid: tuple[int, int] | None = None
        self._reported: dict[str, Any] = {}
        self._checked: Any = None

    tokenizer: Tokenizer

    def build(self) -> None:
        tokenizer = Tokenizer.from_pretrained(self._path)
        check_tokenizer(tokenizer, f"{type(self).__name__}.tokenizer {self._path}")
        self._hashes = accepted_hashes(tokenizer)
        if self._decoder_path is not None:
            take_decoder(tokenizer, self._decoder_path)
        object.__setattr__(self, "tokenizer", tokenizer.requires_grad_(False).eval())
        self.condition = self._make_condition()
        self.space = self._make_space(tokenizer.latent_spec)
        self.network = self._make_network(self.space.spec, self.condition.spec)
        self.network.use_tokenizer(tokenizer)
        self.alignment: FeatureAlignment | None = None
        if self._make_alignment is not None:
            if self.network.token_width is None:
                raise ValueError(f"alignment: {type(self.network).__name__} has no token_width, so no blocks to read")
            self.alignment = self._make_alignment(self.space.feature_channels, self.network.token_width)
            self.alignment.attach(self.network)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer_hash"] = self._hashes[0]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("tokenizer_hash") not in self._hashes:
            raise ValueError(
                f"the checkpoint's generator was trained on the latents of another tokenizer than {self._path}"
            )

    def parts(self) -> Iterator[nn.Module]:
        yield self.network
        yield self.condition
        yield self.space
        if self.alignment is not None:
            yield self.alignment

    @property
    def generator(self) -> Generator:
        """The model as it is now; it shares its parts with this task."""
        if self.grid is None:
            raise ValueError("the grid of the latents is not known before the first batch")
        return Generator(self.tokenizer, self.network, self.condition, self.grid, self.space)

    def latents(self, batch: dict[str, Any]) -> Tensor:
        """What the network is to make, (B, C', h', w'): the normalised latents of a batch, as the space maps them."""
        return self.space(self.encoded(batch))

    @torch.no_grad()
    def encoded(self, batch: dict[str, Any]) -> Tensor:
        """Normalised latents (B, C, h, w) of a batch's images, or those that it holds.

        Raises:
            ValueError: if they are those of another tokenizer.
        """
        if "latent" in batch:
            self._check_cached()
            latents = batch["latent"]
        else:
            latents = self.tokenizer.encode(batch["image"], normalize=True)
        self.grid = (latents.shape[-2], latents.shape[-1])
        return latents

    def _check_cached(self) -> None:
        """Refuse the data's latents if they are not the tokenizer's; looked at once for each data module."""
        data = data_of(self.trainer)
        if self._checked is not data:
            check_cached(getattr(data, "tokenizer_identity", None), self.tokenizer, self._path, self._hashes)
            self._checked = data

    def values(self, batch: dict[str, Any]) -> Any:
        """What the condition reads of a batch; None if it reads nothing.

        Raises:
            ValueError: if the batch lacks it.
        """
        field = self.condition.field
        if field is not None and field not in batch:
            data = None if self._trainer is None else data_of(self._trainer)
            hint = getattr(data, "field_hints", {}).get(field)
            hint = f"; {hint}" if hint else ""
            raise ValueError(f"{type(self.condition).__name__} reads {field!r}, which the data does not have{hint}")
        return None if field is None else batch[field]

    def example_batch(self, images: Tensor) -> dict[str, Any]:
        field, values = self.condition.field, self.condition.example(len(images))
        return {"image": images} | ({} if field is None else {field: values})

    def on_fit_start(self) -> None:
        self.tokenizer.to(self.device)
        self.condition.check_data(data_of(self.trainer))
        if not self.space.is_fitted:
            self._fit_space()

    @torch.no_grad()
    def _fit_space(self) -> None:
        """Fit it, and say how near its pictures come to those of whole latents, on the first batch: "space/psnr"."""
        self.space.fit(self._decoded(-(-self.space.fit_images // self.trainer.world_size)))
        latents, whole = next(self._decoded(1))
        kept = decode_latents(self.tokenizer, self.space.inverse(self.space(latents)), range(len(latents)), 0)
        value = float(psnr(kept, whole).mean())
        rank_zero_info(f"{type(self.space).__name__}: its pictures come within {value:.1f} dB of the whole latents'")
        if self.trainer.logger is not None:
            self.trainer.logger.log_metrics({"space/psnr": value}, step=0)

    def _decoded(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents of the first training images, at least `count` on each process, and what they are decoded to."""
        for batch in train_batches(self.trainer):
            latents = self.encoded({key: v.to(self.device) for key, v in batch.items() if isinstance(v, Tensor)})
            yield latents, decode_latents(self.tokenizer, latents, range(len(latents)), 0)
            count -= len(latents)
            if count <= 0:
                return

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        whole = self.encoded(batch)
        latents = self.space(whole)
        # Once for each sample, whatever the generator does with it.
        dropped = torch.rand(len(latents), device=latents.device) < self.condition.dropout
        losses = self.network.loss(latents, self.condition(self.values(batch), dropped))
        if self.alignment is not None:
            losses["alignment"] = self.alignment.loss(self.space.features(whole))
        total = torch.stack(list(losses.values())).sum()
        self.log("train/loss", total, prog_bar=True)
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
        return total

    def on_validation_epoch_start(self) -> None:
        self.tokenizer.to(self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        latents = self.latents(batch)
        conditioning = self.condition(
            self.values(batch), torch.zeros(len(latents), dtype=torch.bool, device=self.device)
        )
        noise = noise_for(_digests(batch), tuple(latents.shape[1:])).to(latents.device)  # type: ignore[arg-type]
        for time in self.network.validation_times:
            times = torch.full((len(latents),), time, device=latents.device)
            losses = self.network.validation_loss(latents, noise, times, conditioning)
            # The sum too, by which checkpoints are chosen: every generator names its losses as it likes.
            for name, loss in {**losses, "loss": torch.stack(list(losses.values())).sum()}.items():
                self._averages.update(f"val/{name}", loss, count=len(latents))

    def on_validation_epoch_end(self) -> None:
        for name, value in self._averages.compute().items():
            self.log(name, value, rank_zero_only=True)

    def on_test_epoch_start(self) -> None:
        self.tokenizer.to(self.device)
        self._judged = GeneratedImages(self._make_judge())
        self._prompts = PromptAdherence(self._make_prompt_judge())

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images = {"real": to_unit_range(batch["image"])}
        self.latents(batch)  # sets the grid
        for guidance in self.eval_guidance:
            images[self._suffix(guidance)] = self.generate(batch, guidance)
        self._judged.update(images, batch.get("label"))
        self._prompts.update(images, batch)

    def on_test_epoch_end(self) -> None:
        sets, labels = self._judged.gather()
        extractor = self._judged.extractor
        held_out = validation_features(
            self.trainer,
            lambda batch: {"features": extractor(to_unit_range(batch["image"])), **self._prompts.of_real(batch)},
            len(sets["real"].features),
            only_classes=False,
        )
        numbers = judge_generated(sets, labels, held_out, extractor.name) | self._prompts.compute(held_out)
        for name, value in numbers.items():
            self.log(f"test/{name}", value, rank_zero_only=True)
        self._reported = {
            "generation/images": len(sets["real"].features),
            "generation/reference": sets["real"].contents,
            "generation/guidance": self.eval_guidance,
            "generation/judge": extractor.identity(),
            "generation/decoder": self._decoder_path or self._path,
            "generation/prompt_judge": self._prompts.extractor.identity(),
        }

    def report(self) -> dict[str, Any]:
        return self._reported

    def _suffix(self, guidance: float) -> str:
        return "" if guidance == self.eval_guidance[0] else f"_g{guidance:g}"

    def generate(self, batch: dict[str, Any], guidance: float) -> Tensor:
        """An image for the condition of each of a batch, (B, 3, H, W) in [0, 1], float32; noise of each image's own."""
        digests = _digests(batch)
        numbers = [int(digest, 16) for digest in digests]
        assert self.grid is not None
        shape = (self.network.latent.channels, *self.space.grid(*self.grid))
        noise = noise_for(digests, shape, seed=1).to(self.device)
        keep = torch.zeros(len(digests), dtype=torch.bool, device=self.device)
        conditioning, nothing = self.condition(self.values(batch), keep), self.condition(None, ~keep)
        latents = self.network.sample(noise, conditioning, nothing, guidance=guidance)
        images = decode_latents(self.tokenizer, self.space.inverse(latents), numbers, 0)
        if "image" not in batch:
            return images
        height, width = batch["image"].shape[-2:]
        return images[..., :height, :width]

    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]:
        """Real images, or cached latents decoded, and one generated for the condition of each, for each guidance."""
        few: dict[str, Any] = {key: v[:count] for key, v in batch.items() if isinstance(v, Tensor | list)}
        latents = self.encoded(few)
        if "image" in few:
            rows = {"real": to_unit_range(few["image"])}
        else:
            rows = {"decoded": decode_latents(self.tokenizer, latents, range(len(latents)), 0)}
        for guidance in self.eval_guidance:
            rows[f"generated, guidance {guidance:g}"] = self.generate(few, guidance)
        return rows

    def stages(self, images: Tensor) -> Iterator[Stage]:
        results: dict[str, Tensor] = {}

        def encode() -> None:
            results["latents"] = self.space(self.tokenizer.encode(images))

        def generate() -> None:
            dropped = torch.ones(len(images), dtype=torch.bool, device=images.device)
            self.network.loss(results["latents"], self.condition(None, dropped))

        yield Stage("tokenizer", [self.tokenizer.encoder, self.tokenizer.bottleneck], encode, in_graph=False)
        yield Stage("generator", [self.network, self.condition], generate)

    def on_fit_end(self) -> None:
        if is_dry_run(self.trainer) or self.grid is None:
            return
        weights = {
            f"{prefix}.{name}": value
            for prefix, part in (("network", self.network), ("condition", self.condition), ("space", self.space))
            for name, value in full_state_dict(part).items()
        }
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir) / "generator"
            self.generator.save_pretrained(folder, weights)
            rank_zero_info(f"the generator: {folder}; make images with: uniflow sample --generator {folder}")


def _digests(batch: dict[str, Any]) -> list[str]:
    """16 hex digits for each sample of a batch, from its pixels or its latents."""
    return image_digests(batch["image"] if "image" in batch else batch["latent"])
