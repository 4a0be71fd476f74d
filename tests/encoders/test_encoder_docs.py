"""docs/encoders.md: its code runs, its tables are complete."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import ArgumentParser

from uniflow.core.part import build_part, part_config
from uniflow.encoders import VisionEncoder, families, transformers_towers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "encoders.md").read_text()
FIRST, OWN = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_first_example():
    exec(compile(FIRST, "docs/encoders.md", "exec"), {})


def test_own_encoder(tmp_path, monkeypatch):
    (tmp_path / "my_encoder.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=Callable[[], VisionEncoder])
    config = parser.parse_args(["--encoder=my_encoder.MyEncoder", "--encoder.depth=2", "--encoder.width=32"])
    encoder = parser.instantiate(config).encoder()
    output = encoder(torch.zeros(1, 3, 48, 32))
    assert output.grid == (3, 2)
    assert [hidden.shape for hidden in output.hidden_states] == [(1, 6, 32)] * 2
    build_part(part_config(encoder), VisionEncoder).load_state_dict(encoder.state_dict())


def test_table_of_variants():
    for family in ("CLIP", "SigLIP", "DINOv2", "InternViT", "DINOv3"):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{family}`"))
        assert re.findall(r"`([^`]+)`", row.split("|")[2]) == list(get_args(getattr(families, f"{family}Variant")))


def test_table_of_towers():
    assert re.findall(r"^\|[^|]*\| `(\w+)` \| \d \|$", PAGE, re.MULTILINE) == list(transformers_towers.FAMILIES)


def test_files_that_the_page_names_exist():
    for path in re.findall(r"(?:configs|uniflow)/[\w/]+\.(?:yaml|py)", PAGE):
        assert (ROOT / path).is_file(), path
