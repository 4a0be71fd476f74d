"""Modules that have moved: their old import paths keep working, in saved configs as well as in others' code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> the modules that hold what was in it.
MOVED: dict[str, tuple[str, ...]] = {
    "uniflow.adapters": ("uniflow.tokenizer.adapters",),
    "uniflow.atomic": ("uniflow.core.atomic",),
    "uniflow.blocks": ("uniflow.layers.blocks",),
    "uniflow.card": ("uniflow.tokenizer.card",),
    "uniflow.cli.plan": ("uniflow.tools.plan",),
    "uniflow.cli.stats": ("uniflow.tools.stats",),
    "uniflow.consolidate": ("uniflow.tools.consolidate",),
    "uniflow.convert": ("uniflow.tools.convert",),
    "uniflow.cpu": ("uniflow.layers.cpu",),
    "uniflow.curves": ("uniflow.pictures.curves",),
    "uniflow.data.buckets": ("uniflow.data.images.buckets",),
    "uniflow.data.folder": ("uniflow.data.images.folder",),
    "uniflow.data.pack": ("uniflow.tools.pack",),
    "uniflow.data.photos": ("uniflow.tools.photos",),
    "uniflow.data.reading": ("uniflow.data.images.reading",),
    "uniflow.data.shards": ("uniflow.data.images.shards",),
    "uniflow.data.transforms": ("uniflow.data.images.transforms",),
    "uniflow.data.webdataset": ("uniflow.data.images.webdataset",),
    "uniflow.decoders.flow": ("uniflow.flow",),
    "uniflow.decoders.layers": ("uniflow.layers.grid", "uniflow.layers.adaln", "uniflow.decoders.global_stage"),
    "uniflow.decoders.lpips": ("uniflow.losses.lpips",),
    "uniflow.decoders.pixel_losses": ("uniflow.losses.pixel",),
    "uniflow.distill.schedule": ("uniflow.training.schedules",),
    "uniflow.evaluate": ("uniflow.tools.evaluate", "uniflow.tools.common", "uniflow.evaluation.judging"),
    "uniflow.exit_codes": ("uniflow.core.exit_codes",),
    "uniflow.export": ("uniflow.tools.export",),
    "uniflow.gallery": ("uniflow.pictures.gallery",),
    "uniflow.init": ("uniflow.layers.init",),
    "uniflow.latent_statistics": ("uniflow.tokenizer.latent_statistics",),
    "uniflow.look": ("uniflow.tools.look",),
    "uniflow.metrics.gather": ("uniflow.core.distributed",),
    "uniflow.official": ("uniflow.tokenizer.official",),
    "uniflow.part": ("uniflow.core.part", "uniflow.core.imports"),
    "uniflow.push": ("uniflow.tools.push",),
    "uniflow.quickstart": ("uniflow.tools.quickstart",),
    "uniflow.reconstruct": ("uniflow.tools.reconstruct",),
    "uniflow.report": ("uniflow.tools.report",),
    "uniflow.saving": ("uniflow.tokenizer.saving",),
    "uniflow.specs": ("uniflow.core.specs",),
    "uniflow.summary": ("uniflow.tokenizer.summary", "uniflow.tools.summary"),
    "uniflow.sweep": ("uniflow.tools.sweep",),
    "uniflow.tasks.optim": ("uniflow.training.optimizers",),
    "uniflow.tasks.pretraining_heads": ("uniflow.heads.unsupervised",),
    "uniflow.tasks.pretraining_start": ("uniflow.start.copied",),
    "uniflow.tasks.unlabelled": ("uniflow.data.unlabelled",),
    "uniflow.tiling": ("uniflow.tokenizer.tiling",),
}
# Classes with a new name: old name in an old module -> new name.
RENAMED = {
    "Constant": "ConstantSchedule",
    "Cosine": "CosineSchedule",
    "Linear": "LinearSchedule",
    "Uniform": "UniformWeighting",
}


class _MovedModule(ModuleType):
    """Stands at the old path and looks names up where they are now."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for module in map(importlib.import_module, MOVED[self.__name__]):
                for known in (name, RENAMED.get(name, name)):
                    if hasattr(module, known):
                        return getattr(module, known)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _MovedFinder(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are looked up when they are asked for."""


def install() -> None:
    """Let `import` find moved modules; after all other finders, so that a file that exists wins."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
