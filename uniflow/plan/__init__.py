"""What a training takes, before it is started: parameters, operations, memory and hours, with nothing allocated."""

from uniflow.plan.cost import Part, parts_of, training_hours
from uniflow.plan.memory import Memory, memory_of
from uniflow.plan.simulate import FakeTask

__all__ = ["FakeTask", "Memory", "Part", "memory_of", "parts_of", "training_hours"]
