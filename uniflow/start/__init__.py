"""Starting a tokenizer from the solution of a linear regression instead of from random weights."""

from uniflow.core.moments import SecondMoments
from uniflow.start.calibration import calibrate
from uniflow.start.regression import Regression, set_values
from uniflow.start.solution import LinearTokenizer, solve

__all__ = ["LinearTokenizer", "Regression", "SecondMoments", "calibrate", "set_values", "solve"]
