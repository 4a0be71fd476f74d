"""`uniflow sample --prompts`: files of prompts, and the layouts that benchmarks read."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import fit, tiny_scenes
from tiny_language import write_lm

from uniflow.conditions import TextCondition
from uniflow.generators import DiT
from uniflow.tasks import GenerationTask

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "a photo of two clocks"},
]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A text-conditional generator of 32 pixels whose untrained network passes its noise on."""
    root = tmp_path_factory.mktemp("generator")
    condition = partial(TextCondition, str(write_lm(root / "lm")), width=8, token_width=8)
    network = partial(DiT, width=16, depth=1, num_heads=2, steps=2)
    scenes = tiny_scenes(train_length=8, fields=["caption"])
    fit(GenerationTask("embedded", network, condition), scenes, root / "run", steps=1)
    return ("sample", "--generator", str(root / "run/generator"), "--device", "cpu")


def array(path: str) -> np.ndarray:
    return np.array(Image.open(path)).astype(int)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_geneval_reads_four_images_beside_the_line_of_its_file(generator, uniflow, project):
    Path("meta.jsonl").write_text("\n".join(json.dumps(line) for line in GENEVAL) + "\n")
    result = uniflow(*generator, "--prompts", "meta.jsonl", "--out", "out", "--seed", "2")
    assert result.code == 0, result.err
    images = [f"{prompt:05d}/samples/{k:04d}.png" for prompt in range(2) for k in range(4)]
    assert files(project / "out") == sorted(["00000/metadata.jsonl", "00001/metadata.jsonl", *images, "grid.png"])
    assert [json.loads(Path(f"out/{n:05d}/metadata.jsonl").read_text()) for n in range(2)] == GENEVAL
    assert len({array(f"out/{image}").tobytes() for image in images}) == 8
    assert (
        uniflow(*generator, "--prompt", GENEVAL[0]["prompt"], "--count", "4", "--out", "one", "--seed", "2").code == 0
    )
    for k in range(4):
        assert np.abs(array(f"one/{k:06d}.png") - array(f"out/00000/samples/{k:04d}.png")).max() <= 1


def test_dpg_bench_reads_one_square_for_each_prompt(generator, uniflow, project, monkeypatch):
    Path("prompts").mkdir()
    for name, text in (("b", "a red star"), ("a", "a long\nprompt")):
        Path(f"prompts/{name}.txt").write_text(text)
    assert uniflow(*generator, "--prompts", "prompts", "--out", "out").code == 0
    assert files(project / "out") == ["a.png", "b.png", "grid.png"]
    assert uniflow(*generator, "--prompts", "prompts", "--per_prompt", "1", "--out", "single").code == 0
    assert array("out/a.png").shape == (64, 64, 3)
    assert np.abs(array("out/a.png")[:32, :32] - array("single/a.png")).max() <= 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert uniflow(*generator, "--prompts", "prompts", "--out", "two").code == 0
    for name in ("a", "b"):
        assert np.abs(array(f"out/{name}.png") - array(f"two/{name}.png")).max() <= 1


def test_lines_make_an_image_each(generator, uniflow, project):
    Path("lines.txt").write_text("a star\n\na circle\n")
    assert uniflow(*generator, "--prompts", "lines.txt", "--out", "out").code == 0
    assert files(project / "out") == ["000000.png", "000001.png", "grid.png"]


@pytest.mark.parametrize(
    ("file", "content", "words", "message"),
    [
        ("x.csv", "", (), "give a .txt file with a prompt in each line"),
        ("x.txt", " \n", (), "x.txt: it holds no prompt"),
        ("x.jsonl", '{"prompt": "a"}\n{"text": "b"}', (), 'x.jsonl, line 2: no JSON with a "prompt"'),
        ("x.jsonl", '{"prompt": 3}', (), 'its "prompt" is not a text'),
        ("folder/x.txt", "", (), "x.txt holds no prompt"),
        ("folder/x.txt", "a", ("--per_prompt", "3"), "as one square: --per_prompt has to be 1, 4, 9, not 3"),
        ("x.txt", "a", ("--per_prompt", "0"), "--per_prompt must be at least 1, not 0"),
        ("x.txt", "a", ("--count", "2"), "--count is not for --prompts"),
        ("x.txt", "a", ("--prompt", "b"), "give one of --classes, --prompt and --prompts"),
    ],
)
def test_what_is_no_set_of_prompts_is_refused(generator, uniflow, project, file, content, words, message):
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text(content)
    path = str(Path(file).parent) if "/" in file else file
    assert message in uniflow(*generator, "--prompts", path, *words, "--out", "out").error
    assert not Path("out").exists()
    assert "--per_prompt is of --prompts" in uniflow(*generator, "--per_prompt", "2").error
