"""benchmarks/lora.py at tiny size."""

import json

from benchmarks import lora


def test_lines(capfd):
    assert lora.main(["--tiny", "--rounds", "1", "--rank", "2"]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    parameters, memory, time = found
    assert [line["baseline"] for line in found] == [lora.FULL] * 3
    # Two blocks of qkv, proj, fc1, fc2 of width 64, and their multiples of it, against the whole encoder.
    assert parameters["value"] == 2 * 2 * 64 * ((1 + 3) + (1 + 1) + 2 * (1 + 4))
    assert parameters["ratio"] < 0.1
    assert memory["ratio"] < 1
    assert time["value"] > 0
