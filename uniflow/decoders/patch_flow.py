"""The paper's decoder: global transformer blocks, then a rectified flow in each patch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.numbers import (
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SamplerSteps,
    UnitFloat,
)
from uniflow.core.specs import LatentSpec
from uniflow.decoders.base import PixelDecoder
from uniflow.decoders.global_stage import GlobalStage
from uniflow.decoders.shortcut import LinearShortcut, join, split
from uniflow.flow import (
    data_to_velocity,
    euler,
    guide,
    interpolate,
    sample_times,
    step_times,
    velocity_target,
    velocity_to_data,
)
from uniflow.layers.adaln import PatchMLP
from uniflow.layers.grid import Window, cut, image_shape, patchify, to_image, to_tokens, unpatchify
from uniflow.layers.over_time import Memory
from uniflow.layers.precision import full_dtype, without_autocast


class PatchFlowDecoder(PixelDecoder):
    """Patch-wise pixel flow decoder (arXiv 2510.10575): C = GTB(up(z) + PE) + PE', then v(x_t, t, c) in each patch.

    At t = 0 the best velocity yields E[x | c], so one Euler step gives the expected patch.

    Args:
        latent: spec of the latents.
        width: channels of the condition, of the global blocks and of the patch MLP.
        global_depth: global transformer blocks; 0 leaves each patch alone with its own latent.
        num_heads: attention heads of the global blocks.
        flow_depth: AdaLN residual blocks of the patch MLP.
        prediction: what the network predicts: "velocity" (the paper), or "data", the clean patch, from which the
            velocity follows as (x_hat - x_t) / (1 - t). A velocity network has to pass 3 p^2 noise values and needs
            a width above that; a data network does not.
        loss_on: what the squared error is taken of: "velocity" (the paper), or "data", the clean patch, which weighs
            the velocity's error by (1 - t)^2. The difference is large where data are predicted: near t = 1, where x_t
            shows the patch, the velocity's error is the patch's divided by a small 1 - t.
        uniform_share: share of uniformly drawn training times; the others are sigmoid(N(0, 1)).
        end_point_mass: share of training times at exactly t = 0, where one-step decoding lives.
        condition_dropout: probability in training that an image's condition is replaced by zeros; guidance needs it.
        guidance: classifier-free guidance when decoding; 1 is none.
        steps: sampler steps of `decode` where it is given none.
        step_schedule: "linear", or "power" with exponent `step_power`.
        step_power: see `step_schedule`.
        start: what decoding starts from when no noise is given: "random" (drawn) or "zero".
        pixel_mean: per-channel mean of the target range; the default maps [0, 1] to [-1, 1].
        pixel_std: per-channel standard deviation of the target range.
        learned_grid: None for fixed position embeddings; (rows, columns) for trained ones of that grid.
        shortcut: add a linear path from each latent to the pixels of its patch, which starts at zero. The task's
            `start: regression` writes its solution there. Of a network that predicts velocities it is the
            velocity that leads to those pixels, see `LinearShortcut.velocity`.
        position_shift: most rows and columns by which, in training, the grid of each image is moved over the fixed
            position embeddings, at random: positions of larger images are seen so. 0 moves nothing.
        temporal_window: of clips: how many frames a frame sees after each global block, itself included; see
            `TemporalAttention`. 0 decodes each frame as an image.

    Raises:
        ValueError: for shares outside [0, 1], a width that the heads do not divide, or steps that `step_times` refuses.
    """

    last_layer = "head.final_proj"

    def __init__(
        self,
        latent: LatentSpec,
        width: PositiveInt = 1024,
        global_depth: NonNegativeInt = 6,
        num_heads: PositiveInt = 16,
        flow_depth: NonNegativeInt = 12,
        prediction: Literal["velocity", "data"] = "velocity",
        loss_on: Literal["velocity", "data"] = "velocity",
        uniform_share: UnitFloat = 0.1,
        end_point_mass: UnitFloat = 0.0,
        condition_dropout: UnitFloat = 0.0,
        guidance: NonNegativeFloat = 1.0,
        steps: SamplerSteps = 1,
        step_schedule: Literal["linear", "power"] = "linear",
        step_power: PositiveFloat = 1.0,
        start: Literal["random", "zero"] = "random",
        pixel_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.5, 0.5, 0.5),
        pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5),
        learned_grid: tuple[PositiveInt, PositiveInt] | None = None,
        shortcut: bool = False,
        position_shift: NonNegativeInt = 0,
        temporal_window: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        patch_dim = 3 * latent.patch_size**2
        if prediction == "velocity" and width < patch_dim:
            warnings.warn(
                f"a velocity-predicting patch MLP of width {width} cannot pass the {patch_dim} noise values of a "
                f"{latent.patch_size} x {latent.patch_size} patch: set width >= {patch_dim} or prediction: data",
                stacklevel=2,
            )
        self.spec = latent
        self.prediction, self.loss_on = prediction, loss_on
        self.uniform_share, self.end_point_mass = uniform_share, end_point_mass
        self.condition_dropout, self.guidance = condition_dropout, guidance
        self.steps, self.step_schedule, self.step_power, self.start = steps, step_schedule, step_power, start
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.global_stage = GlobalStage(
            latent.channels, width, global_depth, num_heads, learned_grid, position_shift, temporal_window
        )
        self.head = PatchMLP(patch_dim, width, flow_depth)
        self.shortcut: LinearShortcut | None = None
        if shortcut:
            self.shortcut = LinearShortcut(latent.channels, latent.patch_size, pixel_mean, pixel_std)

    @property
    def temporal(self) -> bool:
        return self.global_stage.temporal is not None

    def over_time(self, frames: int, memory: Memory | None = None) -> AbstractContextManager[None]:
        return self.global_stage.over_time(frames, memory)

    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        """`{"flow": mean squared error of the velocity}`, one time and one noise for each patch."""
        return self.loss_and_estimate(latents, images)[0]

    def loss_and_estimate(self, latents: Tensor, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`loss`, and the clean images that the same prediction implies: x_t + (1 - t) v in each patch.

        Every patch has its own time t, so its estimate has seen that much of the true patch; at t = 0 it is what
        `decode` gives in one step without guidance. A dropped condition is dropped here, too.
        """
        data = patchify((images - self._pixels(self.pixel_mean, images)) / self._pixels(self.pixel_std, images), self.p)
        noise, t = self.draw(data)
        loss, patches = self._loss_and_patches(self.condition(latents), data, noise, t)
        return {"flow": loss}, self._to_images(patches, (latents.shape[-2], latents.shape[-1]))

    def draw(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (B, N, 3 p^2) and times (B, N) for the patches `data` (B, N, 3 p^2) of one training batch."""
        times = sample_times(
            tuple(data.shape[:2]),
            device=data.device,
            uniform_share=self.uniform_share,
            end_point_mass=self.end_point_mass,
        )
        return torch.randn_like(data), times.to(data.dtype)

    def flow_loss(self, condition: Tensor, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean over all elements of |v(x_t, t, c) - (x - eps)|^2, in at least float32; times (1 - t)^2 on "data".

        Args:
            condition: what `condition` gives for each patch, (..., K).
            data: clean patches (..., 3 p^2) in the target range.
            noise: standard normal, shaped as `data`.
            t: times (...) in [0, 1].
        """
        return self._loss_and_patches(condition, data, noise, t)[0]

    def _loss_and_patches(self, condition: Tensor, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`flow_loss` and the clean patches (..., 3 p^2) that the prediction implies, in the target range."""
        if self.training and self.condition_dropout > 0:
            keep = torch.rand(condition.shape[0], device=condition.device) >= self.condition_dropout
            condition = condition * keep.view(-1, *[1] * (condition.ndim - 1)).to(condition.dtype)
        x_t = interpolate(noise, data, t[..., None])
        prediction = self._predict(condition, x_t, t)
        velocity = self._velocity_of(prediction, x_t, t)
        with without_autocast(data.device):
            dtype = full_dtype(velocity.dtype)
            if self.prediction == "data":
                patches = prediction.to(dtype)
            else:
                patches = velocity_to_data(velocity.to(dtype), x_t.to(dtype), t[..., None].to(dtype))
            if self.loss_on == "data":
                return F.mse_loss(patches, data.to(dtype)), patches
            return F.mse_loss(velocity.to(dtype), velocity_target(noise, data).to(dtype)), patches

    def condition(self, latents: Tensor, window: Window | None = None) -> Tensor:
        """Latents (B, C, h, w) -> condition (B, h w, K), of all places or of those in a window.

        K is the width; with a shortcut the latents follow, and K is that many channels more.
        """
        tokens = self.global_stage(latents, window)
        return join(self.shortcut, tokens, to_tokens(cut(latents, window)))

    def velocity(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """v(x_t, t, c) of noisy patches (..., 3 p^2) at times (...) under conditions (..., K)."""
        return self._velocity_of(self._predict(condition, x_t, t), x_t, t)

    def _predict(self, condition: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity or the clean patch, as `prediction` says."""
        if self.shortcut is None:
            return self.head(condition, x_t, t)
        tokens, latents = split(self.shortcut, condition)
        straight = self.shortcut(latents) if self.prediction == "data" else self.shortcut.velocity(latents, x_t, t)
        return straight + self.head(tokens, x_t, t)

    def _velocity_of(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "velocity":
            return prediction
        dtype = full_dtype(prediction.dtype)
        return data_to_velocity(prediction.to(dtype), x_t.to(dtype), t[..., None].to(dtype))

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if noise is None:
            noise = self.draw_noise(latents, generator)
        return self.decode_context(self.context(latents), steps=steps, noise=noise)

    def draw_noise(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        if self.start == "zero":
            return None
        # The path is integrated in at least float32, whatever the latents' type.
        dtype = full_dtype(latents.dtype)
        return torch.randn(image_shape(latents, self.p), device=latents.device, dtype=dtype, generator=generator)

    def context(self, latents: Tensor, window: Window | None = None) -> Tensor:
        tokens = self.condition(latents, window)
        return to_image(tokens, cut(latents, window).shape[-2])

    def decode_context(
        self,
        context: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        shape, dtype = image_shape(context, self.p), full_dtype(context.dtype)
        if noise is None:
            noise = self.draw_noise(context, generator)
        if noise is None:
            noise = torch.zeros(shape, device=context.device, dtype=dtype)
        elif tuple(noise.shape) != shape:
            raise ValueError(f"noise must have the images' shape {shape}, got {tuple(noise.shape)}")
        condition = to_tokens(context)

        def velocity(x: Tensor, t: float) -> Tensor:
            times = torch.full(x.shape[:-1], t, device=x.device, dtype=x.dtype)
            v = self.velocity(x, times, condition)
            if self.guidance != 1:
                v = guide(v, self.velocity(x, times, torch.zeros_like(condition)), self.guidance)
            return v.to(x.dtype)

        times = step_times(self.steps if steps is None else steps, schedule=self.step_schedule, power=self.step_power)
        patches = euler(velocity, patchify(noise.to(dtype), self.p), times)
        return self._to_images(patches, (context.shape[-2], context.shape[-1]))

    @property
    def p(self) -> int:
        """Side of a patch in pixels."""
        return self.spec.patch_size

    def _to_images(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches (B, h w, 3 p^2) in the target range -> images (B, 3, H, W), nominally in [0, 1]."""
        images = unpatchify(patches, self.p, grid)
        return images * self._pixels(self.pixel_std, images) + self._pixels(self.pixel_mean, images)

    @staticmethod
    def _pixels(values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(3, 1, 1)
