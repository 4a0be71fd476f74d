"""benchmarks/generation_latents.py from end to end, tiny."""

import json

import pytest
from test_real import last_line

from benchmarks import generation_latents


@pytest.mark.slow
def test_one_generator_on_the_latents_of_two_tokenizers(tmp_path, capfd):
    sizes = ("--images", "32", "--held_out", "32", "--batch_size", "16", "--tokenizer_steps", "2", "--steps", "2")
    given = ["--out", str(tmp_path), *sizes, "--only", "distilled", "--only", "not distilled, KL"]
    given += ["--model.generator.depth", "1", "--model.generator.steps", "2"]
    assert generation_latents.main(given) == 0
    found = last_line(capfd)
    assert list(found) == ["distilled", "not distilled, KL"]
    frechet = [generator["test/frechet_scene_vit"] for _, generator in found.values()]
    assert frechet[0] != frechet[1]
    assert "| not distilled, KL |" in (tmp_path / "generation_latents.md").read_text()
    assert generation_latents.main(given) == 0
    assert last_line(capfd) == found == json.loads((tmp_path / "generation_latents.json").read_text())


def test_what_it_does_not_know_is_refused(capsys):
    assert generation_latents.main(["--only", "nothing"]) == 2
    assert "no variant 'nothing'" in capsys.readouterr().err
