"""`uniflow chat --draw`: one language model says what is drawn, sees the drawing, and answers."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import fit, tiny_scenes
from tiny_language import write_lm

from uniflow.conditions import TextCondition
from uniflow.encoders import SceneViT
from uniflow.features import EncoderSource
from uniflow.generators import DiT, Generator
from uniflow.language import PretrainedLM, TextTemplate
from uniflow.tasks import GenerationTask, VisualQuestionTask

SCENES = {"batch_size": 8, "train_length": 8, "fields": ["questions", "caption"]}
WORDS = "a red star on a plain wall"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An assistant and two generators: of the assistant's language model, and of another one."""
    root = tmp_path_factory.mktemp("runs")
    own, other = (str(write_lm(root / name)) for name in ("lm", "other"))
    weights = load_file(root / "other/model.safetensors")
    save_file(
        {name: 2 * weight for name, weight in weights.items()}, root / "other/model.safetensors", {"format": "pt"}
    )
    source = partial(EncoderSource, partial(SceneViT, None, embed_dim=16, depth=2, num_heads=2), [-2])
    template = TextTemplate("", "{}", " {}{eos}")
    sees = VisualQuestionTask(source, lm=PretrainedLM(own), tune_lm="frozen", template=template, max_new_tokens=2)
    fit(sees, tiny_scenes(**SCENES), root / "sees", steps=1)
    for name, model in (("draws", own), ("alien", other)):
        condition = partial(TextCondition, model, width=8, token_width=8)
        generator = partial(DiT, width=16, depth=1, num_heads=2, steps=2)
        task = GenerationTask("embedded", generator, condition)
        fit(task, tiny_scenes(**SCENES), root / name, steps=1)
    return root


def arguments(runs, generator="draws"):
    return ("chat", "--assistant", str(runs / "sees/assistant"), "--generator", str(runs / generator / "generator"))


def test_it_draws_and_answers_about_the_drawing(runs, uniflow, project):
    result = uniflow(*arguments(runs), "--draw", "star.png", "--seed", "3", WORDS, "What color is the star?")
    assert result.code == 0, result.err
    assert f"star.png: {WORDS}\n" in result.out  # not "another model": there is one language model
    drawn = np.array(Image.open(project / "star.png"))
    expected = Generator.from_pretrained(runs / "draws/generator").sample([WORDS], seed=3)[0]
    assert np.abs(expected.permute(1, 2, 0).numpy() * 255 - drawn).max() <= 1
    answer = uniflow("chat", *arguments(runs)[1:3], "--image", "star.png", "What color is the star?")
    assert result.out.endswith(answer.out)
    assert uniflow(*arguments(runs), "--draw", "again.png", "--seed", "4", WORDS).code == 0
    assert not np.array_equal(np.array(Image.open(project / "again.png")), drawn)


def test_another_language_model_is_named(runs, uniflow, project):
    result = uniflow(*arguments(runs, "alien"), "--draw", "star.png", WORDS)
    assert result.code == 0, result.err
    assert "another model than the assistant's" in result.out


def test_what_cannot_be_drawn_is_refused(runs, uniflow, project):
    words = arguments(runs)
    assert "nothing is given for questions" in uniflow(*words, "--draw", "a.png").error
    assert "must end in .png" in uniflow(*words, "--draw", "a.jpg", WORDS).error
    assert "go together" in uniflow(*words, WORDS).error
    assert "go together" in uniflow(*words[:3], "--draw", "a.png", WORDS).error
    Image.new("RGB", (32, 32)).save(project / "b.png")
    assert "not both" in uniflow(*words, "--draw", "a.png", "--image", "b.png", WORDS).error
    fit(
        GenerationTask("embedded", partial(DiT, width=16, depth=1, num_heads=2)),
        tiny_scenes(),
        project / "plain",
        steps=1,
    )
    untold = ("--generator", str(project / "plain/generator"))
    assert "was not trained with texts" in uniflow(*words[:3], *untold, "--draw", "a.png", WORDS).error
    assert not (project / "a.png").exists()
