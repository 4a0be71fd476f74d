"""Numbers outside of their range are refused: by every constructor, and on the command line."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
import typing
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from cli_fixtures import REPOSITORY
from lightning.pytorch import Callback

import uniflow
from uniflow.bottleneck import FSQBottleneck, KLBottleneck, VQBottleneck
from uniflow.callbacks import EMA
from uniflow.core.numbers import CheckedNumbers, constructor_arguments, describe, fits
from uniflow.core.part import Part
from uniflow.core.specs import EncoderSpec, LatentSpec
from uniflow.decoders import PatchFlowDecoder, ViTDecoder
from uniflow.distill import Adaptive, LayerWeighting
from uniflow.encoders import SceneViT
from uniflow.features import FeatureSource
from uniflow.heads import Head
from uniflow.sharding.strategy import FSDP2
from uniflow.start import Regression
from uniflow.tasks import Task, TokenizerTask
from uniflow.training import FusedAdamW, LinearSchedule, Piecewise, Schedule, Warmup, as_schedule
from uniflow.training.optimizers import check_finite

OTHER_ROOMS = ("data", "cli", "tools", "plan", "ablation", "pretrained")
WRONG = (math.nan, math.inf, -math.inf, -1, 0, 1e30, True)
BASES = (Part, Task, Callback, Head, LayerWeighting, Schedule, FeatureSource, FusedAdamW, FSDP2, Regression)


def public_classes() -> Iterator[type]:
    """All classes of the package that a config can name, outside of OTHER_ROOMS."""
    for module in pkgutil.walk_packages(uniflow.__path__, "uniflow."):
        if module.name.split(".")[1] in OTHER_ROOMS:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            here = inspect.isclass(value) and value.__module__ == module.name and not name.startswith("_")
            if here and issubclass(value, BASES) and "__init__" in vars(value):
                yield value


def plain_numbers(hint: Any) -> list[type]:
    """The types in `hint` that have no range."""
    if hint in (int, float):
        return [hint]
    return [plain for inner in typing.get_args(hint) for plain in plain_numbers(inner)]


def number_arguments() -> list[Any]:
    return [
        pytest.param(cls, name, hint, id=f"{cls.__name__}.{name}")
        for cls in public_classes()
        for name, (_, hint) in constructor_arguments(cls).items()
        if any(word in describe(hint) for word in ("integer", "number"))
    ]


@pytest.mark.parametrize(("cls", "name", "hint"), number_arguments())
def test_every_number_has_a_range_and_the_constructor_checks_it(cls: type, name: str, hint: Any) -> None:
    assert name == "layers" or not plain_numbers(hint)  # indices of layers may be any
    listed = "list of" in describe(hint) or "values, each" in describe(hint)
    for number in WRONG:
        value = [number] if listed and not fits(1, hint) else number
        if fits(value, hint):
            continue
        text = f"{cls.__name__}.{name} must be {describe(hint)}, got {value!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            cls.__new__(cls, **{name: value})


ENCODER = EncoderSpec(32, 8, 2, 1, 64, (0.5,) * 3, (0.5,) * 3)
LATENT = LatentSpec(8, 8)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: EMA(math.nan), r"^EMA\.decay must be a number in \[0, 1\), got nan$"),
        (lambda: EMA(decay=1), r"^EMA\.decay must be"),
        (lambda: SceneViT(None, depth=0), r"^SceneViT\.depth must be an integer >= 1, got 0$"),
        (lambda: SceneViT(None, mlp_ratio=-1.0), r"^SceneViT\.mlp_ratio must be a finite number > 0 or null, got -1"),
        (lambda: SceneViT(None, tune=0), r"^SceneViT\.tune must be"),
        (lambda: VQBottleneck(ENCODER, commitment_weight=-1), r"^VQBottleneck\.commitment_weight must be"),
        (lambda: FSQBottleneck(ENCODER, levels=[8, 0]), r"^FSQBottleneck\.levels must be a list of values, each"),
        (lambda: KLBottleneck(ENCODER, weight=math.inf), r"^KLBottleneck\.weight must be"),
        (lambda: KLBottleneck(ENCODER, 8.5), r"^KLBottleneck\.channels must be an integer >= 1, got 8\.5$"),
        (lambda: PatchFlowDecoder(LATENT, pixel_std=(0.5, 0.5, 0)), r"^PatchFlowDecoder\.pixel_std must be 3 values"),
        (lambda: PatchFlowDecoder(LATENT, pixel_mean=(0.5, 0.5)), r"^PatchFlowDecoder\.pixel_mean must be 3 values"),
        (lambda: ViTDecoder(LATENT, depth=-1), r"^ViTDecoder\.depth must be an integer >= 0, got -1$"),
        (lambda: Warmup(math.nan), r"^Warmup\.fraction must be"),
        (lambda: Piecewise([0, 2], [1, 1]), r"^Piecewise\.progress must be"),
        (lambda: LinearSchedule(end=math.inf), r"^LinearSchedule\.end must be"),
        (lambda: Adaptive(beta=math.nan), r"^Adaptive\.beta must be a finite number >= 0 or a Schedule, got nan$"),
        (lambda: TokenizerTask(SceneViT, distillation_weight=-math.inf), "distillation_weight must be a finite num"),
        (lambda: TokenizerTask(SceneViT, distillation_weight=LinearSchedule(1, -1)), "LinearSchedule gives -0.02"),
        (lambda: TokenizerTask(SceneViT, lr_schedule=LinearSchedule(1, -1)), r"TokenizerTask\.lr_schedule must be"),
    ],
)  # fmt: skip
def test_constructors_refuse(build: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()


def test_plain_numbers_stay_what_they_are() -> None:
    class Mine(CheckedNumbers):
        def __init__(self, size: int, rate: float, other: object = None, **rest: Any) -> None:
            self.size, self.rate, self.other = size, rate, other

    mine = Mine(-3, 2, other=math.nan, more=math.inf)  # only what names a number is checked
    assert (mine.size, mine.rate) == (-3, 2)
    assert deepcopy(mine).size == -3
    with pytest.raises(ValueError, match=r"^Mine\.rate must be a finite number, got inf$"):
        Mine(1, math.inf)
    with pytest.raises(ValueError, match=r"^Mine\.size must be an integer, got True$"):
        Mine(True, 1.0)


def test_a_schedule_of_any_sign_is_left_alone_where_none_is_forbidden() -> None:
    assert as_schedule(-2.0)(0.5) == -2
    with pytest.raises(ValueError, match=r"^x must be finite and >= 0 all the time, and ConstantSchedule gives -2"):
        as_schedule(-2.0, "x")


def test_optimizers_of_torch_too_need_finite_settings() -> None:
    import torch

    weights = [torch.nn.Parameter(torch.zeros(2))]
    check_finite(torch.optim.SGD(weights, lr=0.1))
    with pytest.raises(ValueError, match=r"^SGD\.lr must be finite, got nan$"):
        check_finite(torch.optim.SGD(weights, lr=math.nan))


SCHEDULE = "expected a finite number >= 0 or a class such as Schedule"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model.distillation_weight", "nan"], f"model.distillation_weight: {SCHEDULE}, got 'nan'"),
        (["--model.distillation_weight", "-1"], f"model.distillation_weight: {SCHEDULE}, got '-1'"),
        (["--model.distillation_weight=-.inf"], f"model.distillation_weight: {SCHEDULE}, got '-.inf'"),
        (["--model.encoder.depth", "0"], "model.encoder.depth: expected an integer >= 1, got '0'"),
        (["--model.eval_steps", "[0]"], "model.eval_steps: expected a list, each an integer from 1 to 10,000, got"),
        (["--model.eval_steps", "[1000000000]"], "an integer from 1 to 10,000, got '[1000000000]'"),
        (["--data.num_workers", "100000"], "Scenes: num_workers must be at most 1,024, not 100000"),
        (["--data.train_length", "1" + "0" * 19], "Scenes: length must be at most 1,000,000,000,000, not"),
        (["--data.size", "100000"], "size must be at most 4096 pixels, got 100000 x 100000"),
        (["--ema.decay", "1"], "ema.decay: expected a number in [0, 1), got '1'"),
        (["--model.optimizer.eps=.inf"], "AdamW.eps must be finite, got inf"),
        (
            ["--model.distillation_weight", "LinearSchedule", "--model.distillation_weight.end", "-1"],
            "TokenizerTask.distillation_weight must be finite and >= 0 all the time, and LinearSchedule gives",
        ),
    ],
)  # fmt: skip
def test_fit_refuses(uniflow: Any, options: list[str], text: str) -> None:
    result = uniflow("fit", "-c", "recipe.yaml", *options)
    assert result.code == 2
    assert text in result.error
    assert len(result.error) < 300


def test_saved_configs_hold_plain_numbers(resolve: Any) -> None:
    model = resolve(
        "-c", str(REPOSITORY / "configs/quickstart.yaml"), "--model.encoder.depth", "3", "--ema.decay", "0.5"
    )
    decay, depth = model["ema"]["init_args"]["decay"], model["model"]["init_args"]["encoder"]["init_args"]["depth"]
    assert (type(decay), type(depth)) == (float, int)


def test_help_shows_the_range(uniflow: Any) -> None:
    assert "(type: float in [0, 1), default: 0.999)" in " ".join(uniflow("fit", "--ema.help", "EMA").out.split())
