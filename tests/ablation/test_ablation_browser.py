"""The report in a browser, at the width of a phone and of a screen."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from uniflow.tools.report import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
# The page in a frame, because a window has a least width; its measures as text, for --dump-dom.
FRAME = """<body style="margin:0">
<iframe id="f" srcdoc="{page}" style="border:0;width:{width}px;height:3000px"></iframe>
<p id="m"></p><script>f.onload = () => {{
  const page = f.contentDocument, wide = [...page.querySelectorAll("svg, img, p, dl")];
  m.textContent = ["page", page.documentElement.scrollWidth, "widest",
    Math.round(Math.max(...wide.map(e => e.getBoundingClientRect().right)))].join(" ");
}}</script></body>"""


def browse(page: Path, tmp_path: Path, *options: str) -> str:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [str(BROWSER), "--headless", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000", *sandbox]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_page(study_folders: list[Path], tmp_path: Path, width: int) -> None:
    report(study_folders, tmp_path / "report")
    text = (tmp_path / "report/report.html").read_text()
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=html.escape(text), width=width))
    match = re.search(r"page (\d+) widest (\d+)", browse(frame, tmp_path, "--dump-dom"))
    assert match is not None
    assert int(match[1]) <= width
    assert width * 0.8 < int(match[2]) <= width
    browse(frame, tmp_path, f"--window-size={max(width, 500)},3000", f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as picture:
        colors = picture.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 50  # text, lines and images, not an empty page
