"""docs/bottlenecks.md: its code runs, its commands parse, its tables are complete."""

import inspect
import re
import shlex
from functools import cache, partial

import torch
from cli_fixtures import REPOSITORY
from tiny import ENCODER, fit, output_of, tiny_scenes, tiny_task

import uniflow.bottleneck
from uniflow.bottleneck import Bottleneck, VQBottleneck
from uniflow.core.part import build_part, part_config

PAGE = (REPOSITORY / "docs/bottlenecks.md").read_text(encoding="utf-8")
USE, OWN = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_use():
    exec(compile(USE, "docs/bottlenecks.md", "exec"), {})


def test_own_bottleneck(tmp_path, monkeypatch):
    (tmp_path / "my_bottleneck.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    from my_bottleneck import Signs

    task = tiny_task(bottleneck=partial(Signs, channels=8, merge=2))
    fit(task, tiny_scenes(), tmp_path, steps=2)
    bottleneck = task.tokenizer.bottleneck.eval()
    features = torch.randn(2, 32, 4, 4)
    latents, _ = bottleneck(output_of(features))
    assert torch.equal(bottleneck.from_indices(bottleneck.indices(output_of(features))), latents)
    again = build_part(part_config(bottleneck), Bottleneck, ENCODER().spec)
    again.load_state_dict(bottleneck.state_dict())


def test_commands_parse(resolve, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    parse = cache(lambda *words: resolve(*words)["model"]["init_args"]["bottleneck"])
    for line in "".join(blocks).splitlines():
        words = shlex.split(line)[2:]
        assert parse(*words) != parse(*words[:2]), line


def test_tables_are_complete():
    files = {path.name for path in (REPOSITORY / "configs/bottlenecks").glob("*.yaml")}
    assert files <= set(re.findall(r"`(\w+\.yaml)`", PAGE))
    concrete = {
        name
        for name, cls in vars(uniflow.bottleneck).items()
        if inspect.isclass(cls) and issubclass(cls, Bottleneck) and not inspect.isabstract(cls)
    }
    assert set(re.findall(r"^\| `(\w+Bottleneck)`", PAGE, re.MULTILINE)) == concrete


def test_the_table_of_settings_has_their_defaults():
    parameters = inspect.signature(VQBottleneck).parameters
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ((?:[\d.]+|true|false)(?:, \d+)?) \|", PAGE, re.MULTILINE)
    stated = {}
    for names, values in rows:
        stated |= dict(zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True))
    expected = {
        name: str(p.default).lower() for name, p in parameters.items() if name not in ("encoder", "merge", "reads")
    }
    assert stated == expected
