"""Rectified flow as pure functions: path, times, samplers.

One clock in the whole project: t = 0 is noise, t = 1 is data. (The paper, arXiv 2510.10575, writes it the other way
round.)
"""

from uniflow.flow.path import data_to_velocity, interpolate, velocity_target, velocity_to_data
from uniflow.flow.samplers import dopri5, euler, guide, heun, need_torchdiffeq
from uniflow.flow.times import dimension_shift, sample_times, shift_times, step_times

__all__ = [
    "data_to_velocity",
    "dimension_shift",
    "dopri5",
    "euler",
    "guide",
    "heun",
    "interpolate",
    "need_torchdiffeq",
    "sample_times",
    "shift_times",
    "step_times",
    "velocity_target",
    "velocity_to_data",
]
