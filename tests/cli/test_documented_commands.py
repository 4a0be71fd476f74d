"""The commands that the documents show are run, at tiny size, in the order in which they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import REPOSITORY, tiny_options, tiny_source, write_photos
from PIL import Image

from uniflow.cli.app import callback_options

EVERYTHING = "docs/cli.md"
# Document -> the heading under which its commands stand; None is all of it.
DOCUMENTS = {"README.md": "Swap anything", EVERYTHING: None}
MAIN_JOB = {"an encoder": "--model.encoder", "a weighting": "--model.weighting", "a decoder": "--model.decoder"}


def commands(document: str) -> list[str]:
    """The `uniflow` lines of the bash blocks under the document's heading, up to the next heading of its level."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    if heading := DOCUMENTS[document]:
        match = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
        text = match[2] if match else ""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("uniflow ")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands(
    project: Path,
    resolve: Callable[..., dict[str, Any]],
    uniflow: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    document: str,
) -> None:
    found = commands(document)
    for what, option in MAIN_JOB.items():
        assert any(f" {option} " in line for line in found), f"{document} shows no command that swaps {what}"
    assert any("my_pkg.MyDecoder" in line for line in found), f"{document} shows no decoder of one's own"
    monkeypatch.setattr("uniflow.tasks.start.CALIBRATION_IMAGES", 4)
    monkeypatch.setattr("uniflow.tasks.start.JUDGED_IMAGES", 4)
    (project / "configs").symlink_to(REPOSITORY / "configs")
    write_photos(project / "photos")
    Image.open(next((project / "photos").rglob("*.png"))).save(project / "photo.jpg")
    if document != EVERYTHING:
        found = [line for line in found if line not in commands(EVERYTHING)]  # which are run there
    for line in found:
        words = shlex.split(line, comments=True)[1:]
        if words[0] in ("fit", "plan"):
            recipe = words[1:] if words[0] == "fit" else words[1:3]  # the rest is the plan's own
            config = resolve(*recipe)
            words += tiny_options(config, given=line)
            if words[0] == "plan":
                words += ["--model.optimizer.ns_steps", "1"]  # Muon takes most of the time
            elif "--data.root" not in line:
                words += tiny_source(config, project)
        result = uniflow(*words)
        assert result.code == 0, f"{line}\n{result.err}"


def test_callbacks_are_listed() -> None:
    """The table in docs/cli.md."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`", (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(key, cls.__name__) for key, cls in callback_options().items()]
