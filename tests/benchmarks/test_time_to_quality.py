"""benchmarks/time_to_quality.py from end to end, tiny."""

import itertools
import json

import pytest
from test_real import TINY, last_line, parts  # noqa: F401  # a fixture

from benchmarks import time_to_quality


@pytest.mark.slow
def test_variants_are_run_once_and_compared(parts, capfd):  # noqa: F811
    given = ["--encoder", str(parts / "encoder.safetensors"), "--photographs", str(parts / "photographs")]
    given += ["--out", str(parts / "out"), "--steps", "10", *TINY, "--trainer.precision", "32-true"]
    only = ["--only", "recipe", "--only", "recipe, states from a cache"]
    assert time_to_quality.main([*given, *only]) == 0
    found = last_line(capfd)
    assert list(found) == only[1::2]
    for result in found.values():
        progress = result["progress"]
        assert [p["images"] for p in progress] == list(range(0, 81, 8))
        assert 0 < progress[0]["seconds"] < 60  # of the start alone: the check before training is not counted
        assert all(before["seconds"] < after["seconds"] for before, after in itertools.pairwise(progress))
        assert result["reached"]["29 dB"] is None  # noise
        assert progress[0]["gflop"] > 0
    spent = [found[name]["progress"][-1]["gflop"] - found[name]["progress"][-2]["gflop"] for name in found]
    assert 0 < spent[1] < 0.9 * spent[0]  # by then the encoder of the second does not run
    assert found["recipe"]["test_psnr"] != found["recipe, states from a cache"]["test_psnr"]  # of other crops
    assert list((parts / "out" / "states").rglob("*.safetensors"))
    table = (parts / "out" / "time_to_quality.md").read_text().splitlines()
    assert [line.count("|") for line in table] == [8] * 4
    assert table[3].startswith("| recipe, states from a cache |")
    assert (parts / "out" / "time_to_quality.png").stat().st_size > 1000
    assert time_to_quality.main([*given, *only]) == 0
    assert last_line(capfd) == found
    assert json.loads((parts / "out" / "time_to_quality.json").read_text()) == found


def test_what_it_does_not_know_is_refused(capsys):
    required = ["--encoder", "x", "--photographs", "y"]
    assert time_to_quality.main([*required, "--only", "nothing"]) == 2
    assert "no variant 'nothing'" in capsys.readouterr().err
    assert time_to_quality.main([*required, "--steps", "3"]) == 2
    assert "--steps must be at least 10" in capsys.readouterr().err
