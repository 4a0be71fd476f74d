"""`uniflow sample` with a generator whose config asks for too much."""

import json

import pytest
import torch

from uniflow import Tokenizer
from uniflow.conditions import NoCondition
from uniflow.generators import DiT, Generator


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda c: c.update(grid=[4096, 4096]), (), "images of 32768 x 32768 pixels, more than 67,108,864 in all"),
        (
            lambda c: c["network"]["init_args"].update(steps=10**9),
            (),
            "steps must be an integer from 1 to 10,000, not 1000000000",
        ),
        (lambda c: None, ("--count", "9" * 400), "--count must be at least 1 and at most 10,000,000"),
    ],
)
def test_what_would_never_end_is_refused(tmp_path, uniflow, monkeypatch, change, words, message):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer, condition = Tokenizer.from_pretrained("embedded"), NoCondition()
    network = DiT(tokenizer.bottleneck.spec, condition.spec, width=16, depth=1, num_heads=2, steps=1)
    Generator(tokenizer, network, condition, (2, 2)).save_pretrained("generator")
    path = tmp_path / "generator/config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    result = uniflow("sample", "--generator", "generator", "--count", "1", *words)
    assert message in result.error
