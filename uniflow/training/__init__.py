"""What training shares: schedules, optimizers, parameter groups."""

from uniflow.training.muon import Muon
from uniflow.training.optimizers import FusedAdamW, parameter_groups
from uniflow.training.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Piecewise,
    Schedule,
    Warmup,
    as_schedule,
)

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "FusedAdamW",
    "LinearSchedule",
    "Muon",
    "Piecewise",
    "Schedule",
    "Warmup",
    "as_schedule",
    "parameter_groups",
]
