"""Conditions: what a generator is told about the image that it shall make."""

from uniflow.conditions.base import Condition, Conditioning
from uniflow.conditions.label import LabelCondition, NoCondition

__all__ = ["Condition", "Conditioning", "LabelCondition", "NoCondition"]
