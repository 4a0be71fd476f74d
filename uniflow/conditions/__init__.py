"""Conditions: what a generator is told about the image that it shall make."""

from uniflow.conditions.base import Condition, Conditioning, join
from uniflow.conditions.label import LabelCondition, NoCondition
from uniflow.conditions.text import TextCondition

__all__ = ["Condition", "Conditioning", "LabelCondition", "NoCondition", "TextCondition", "join"]
