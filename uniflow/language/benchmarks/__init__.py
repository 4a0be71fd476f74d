"""Benchmarks of visual question answering in their official local files, with their official scores."""

from uniflow.language.benchmarks.base import Benchmark, Model, Question, answer_all
from uniflow.language.benchmarks.gqa import GQA
from uniflow.language.benchmarks.mmbench import MMBench
from uniflow.language.benchmarks.mme import MME
from uniflow.language.benchmarks.pope import POPE
from uniflow.language.benchmarks.reading import read_benchmark
from uniflow.language.benchmarks.textvqa import TextVQA

__all__ = ["GQA", "MME", "POPE", "Benchmark", "MMBench", "Model", "Question", "TextVQA", "answer_all", "read_benchmark"]
