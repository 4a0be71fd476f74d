"""The networks that the benchmarks of training measure: DINOv2 ViT-S/14, the paper's bottleneck, a light flow decoder.

Random weights: what is measured is time and memory, not a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from uniflow.bottleneck import MLPBottleneck
from uniflow.core.pixels import to_unit_range
from uniflow.decoders import PatchFlowDecoder
from uniflow.distill import Adaptive, FrozenTeacher
from uniflow.encoders import DINOv2
from uniflow.features.state_cache import StateCache
from uniflow.layers.blocks import Checkpointing, compile_blocks, find_blocks
from uniflow.layers.cpu import fuse_attention, has_slow_bfloat16
from uniflow.tasks import TokenizerTask
from uniflow.training import FusedAdamW

SIZE, BATCH = 224, 4
PRECISION = "32-true" if has_slow_bfloat16() else "bf16-mixed"  # of trainers
ENCODER = partial(DINOv2, "s14", weights=None)
# 7.1 M parameters, a third of the encoder's.
DECODER = partial(
    PatchFlowDecoder, width=384, global_depth=2, num_heads=6, flow_depth=3, prediction="data", end_point_mass=0.5
)
TINY_ENCODER = partial(DINOv2, "s14", weights=None, depth=2, embed_dim=64, num_heads=2)
TINY_DECODER = partial(PatchFlowDecoder, width=64, global_depth=1, num_heads=2, flow_depth=1, prediction="data")


class Sizes:
    """What to measure: the real sizes, or tiny ones for tests."""

    def __init__(self, tiny: bool = False) -> None:
        self.encoder: Callable[[], Any] = TINY_ENCODER if tiny else ENCODER
        self.decoder: Callable[[Any], Any] = TINY_DECODER if tiny else DECODER
        self.size = 28 if tiny else SIZE

    def batch(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, 3, self.size, self.size)
        return {"image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)}

    def parts(self) -> tuple[Any, Any, Any]:
        """Encoder, bottleneck and decoder, the same at every call."""
        torch.manual_seed(0)
        encoder = self.encoder()
        bottleneck = MLPBottleneck(encoder.spec)
        return encoder, bottleneck, self.decoder(bottleneck.spec)


def straightforward_step(sizes: Sizes) -> Callable[[], None]:
    """One step as one would first write it: float32, attention written out, AdamW and cosines not fused."""
    encoder, bottleneck, decoder = sizes.parts()
    teacher = FrozenTeacher(encoder)
    modules = nn.ModuleList([encoder, bottleneck, decoder])
    fuse_attention(modules, False)
    fuse_attention(teacher, False)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-4, foreach=False, fused=False)
    weighting, images = Adaptive(), sizes.batch()["image"]

    def step() -> None:
        optimizer.zero_grad()
        student = encoder(images)
        latents, _ = bottleneck(student)
        flow = decoder.loss(latents, to_unit_range(images))["flow"]
        pairs = zip(student.hidden_states, teacher(images).hidden_states, strict=True)
        distances = torch.stack([1 - F.cosine_similarity(own, other, dim=-1).mean() for own, other in pairs])
        (flow + (weighting(distances, 0.5) * distances).sum()).backward()
        optimizer.step()

    return step


def floor_step(sizes: Sizes, *, dtype: torch.dtype, compiled: bool, fused: bool) -> Callable[[], None]:
    """What no step can do without: the teacher's forward pass, both passes of timm's bare encoder and of the decoder.

    No distances, no bottleneck, no optimizer; the same precision, attention and compilation as the step it is for.
    """
    encoder, bottleneck, decoder = sizes.parts()
    teacher = FrozenTeacher(encoder)
    modules = nn.ModuleList([encoder, decoder])
    for module in (modules, teacher):
        fuse_attention(module, fused)
        if compiled:
            compile_blocks(find_blocks(module))
    images = sizes.batch()["image"]
    pixels, grid = encoder.normalize(images), (sizes.size // encoder.spec.patch_size,) * 2
    latents = torch.randn(BATCH, bottleneck.spec.channels, *grid).requires_grad_()

    def step() -> None:
        modules.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                teacher.encoder.model.forward_features(pixels)
            hidden = encoder.model.forward_features(pixels)
            flow = decoder.loss(latents, to_unit_range(images))["flow"]
        (hidden.float().square().mean() + flow).backward()

    return step


class Repeated:
    """A loader that gives the same batch `length` times."""

    def __init__(self, batch: dict[str, Tensor], length: int) -> None:
        self._batch, self._length = batch, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([self._batch] * self._length)


class Feed:
    """Batches for a `Trainer.fit` that runs in a thread of its own, one at each call of `step`.

    So steps of several trainings, each in its real loop, can take turns.

    Args:
        fit: starts the training on the loader that it is given.
        batch: the batch, always the same.
    """

    LENGTH = 1_000_000

    def __init__(self, fit: Callable[[Any], None], batch: dict[str, Tensor]) -> None:
        self._batch = batch
        self._ready, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(fit,), daemon=True)
        self._thread.start()
        self._wait()

    def __len__(self) -> int:
        return self.LENGTH

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            self._ready.release()  # the step before has ended
            self._go.acquire()
            if self._closed:
                return
            yield self._batch

    def step(self) -> None:
        """One whole step: from the batch to where the next one is asked for."""
        self._go.release()
        self._wait()

    def close(self) -> None:
        """End the training."""
        self._closed = True
        self._go.release()
        self._thread.join()

    def _run(self, fit: Callable[[Any], None]) -> None:
        torch.set_num_threads(1)
        try:
            fit(self)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.release()

    def _wait(self) -> None:
        self._ready.acquire()
        if self._error is not None:
            raise self._error


def make_task(
    sizes: Sizes,
    *,
    compiled: bool,
    fused: bool,
    rounded: bool = True,
    checkpointing: Checkpointing = False,
    state_cache: Path | None = None,
) -> TokenizerTask:
    """The tokenizer's task, built, as the measured step has it; `state_cache`: where the teacher's states are kept."""
    torch.manual_seed(0)
    task = TokenizerTask(
        encoder=sizes.encoder,
        decoder=sizes.decoder,
        optimizer=partial(FusedAdamW, lr=1e-4),
        activation_checkpointing=checkpointing,
        state_cache=None if state_cache is None else StateCache(str(state_cache)),
    )
    task.configure_model()
    if compiled:
        for module in (task.tokenizer, task.teacher):
            compile_blocks(find_blocks(module))
    if fused or not rounded:  # not as a fit prepares it
        for module in (task.tokenizer, task.teacher):
            fuse_attention(module, fused)
        if rounded:
            task.teacher.round_weights(torch.bfloat16)
        vars(task)["train_in_low_precision"] = lambda dtype: None
    return task


def make_trainer(folder: Path, callbacks: Sequence[Callback] = (), **settings: Any) -> Trainer:
    """A trainer on the CPU that prints nothing; without `settings` it logs nothing and saves nothing."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"precision": PRECISION} | quiet | settings),
    )
