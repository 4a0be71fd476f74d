"""Procedural scenes: rendered images with exact labels of all kinds."""

from uniflow.data.scenes.dataset import FIELDS, Scenes, ScenesDataset, collate_scenes
from uniflow.data.scenes.language import ANSWERS, QUESTION_KINDS, Question
from uniflow.data.scenes.renderer import Renderer, Rendering
from uniflow.data.scenes.scene import COLOR_NAMES, SKY_DEPTH, Scene, SceneObject, sample_scene
from uniflow.data.scenes.shapes import CLASS_NAMES

__all__ = [
    "ANSWERS",
    "CLASS_NAMES",
    "COLOR_NAMES",
    "FIELDS",
    "QUESTION_KINDS",
    "SKY_DEPTH",
    "Question",
    "Renderer",
    "Rendering",
    "Scene",
    "SceneObject",
    "Scenes",
    "ScenesDataset",
    "collate_scenes",
    "sample_scene",
]
