"""Language models that read image features: projector, prompts, answers, and assistants on disk."""

from uniflow.language.answers import Answerer, normalized
from uniflow.language.assistant import Assistant, load_source, save_assistant, save_source
from uniflow.language.models import LanguageModel, PretrainedLM, ScratchLM
from uniflow.language.projector import Projector
from uniflow.language.prompts import ChatTemplate, Prompts, Template, TextTemplate, Turn

__all__ = [
    "Answerer",
    "Assistant",
    "ChatTemplate",
    "LanguageModel",
    "PretrainedLM",
    "Projector",
    "Prompts",
    "ScratchLM",
    "Template",
    "TextTemplate",
    "Turn",
    "load_source",
    "normalized",
    "save_assistant",
    "save_source",
]
