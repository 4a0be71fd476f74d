"""What a report says: numbers, caveats, warnings; and that its page needs nothing outside itself."""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from uniflow.ablation.collect import study_of_folders, study_of_plan
from uniflow.ablation.metrics import DEFAULT, duration, named_metric
from uniflow.ablation.page import html_page
from uniflow.ablation.plan import Plan
from uniflow.ablation.plots import pareto_front, plots, thinned, to_svg
from uniflow.ablation.state import FAILED, FINISHED, State
from uniflow.ablation.study import Outcome, Study, best, caveats, protocol_warning, summarise
from uniflow.ablation.tables import means_table
from uniflow.tools.report import report

OUTSIDE = re.compile(
    r"""\b(?:src|srcset|href|action|poster|data)=(?:["'](?!#|data:)|[^\s"'#])|url\((?!["']?(?:#|data:))|@import|[a-z]+://"""
)


def outcome(variant: str, seed: int, **results: float) -> Outcome:
    return Outcome(variant, seed, Path(variant), results={f"test/{name}": value for name, value in results.items()})


def study(*outcomes: Outcome, metrics: tuple[str, ...] = ("test/psnr",)) -> Study:
    return Study("title", "", list(outcomes), [named_metric(key) for key in metrics], [])


def test_mean_and_spread() -> None:
    found = summarise([1.0, 2.0, 4.5])
    assert found.mean == pytest.approx(2.5)
    assert found.spread == pytest.approx(statistics.stdev([1.0, 2.0, 4.5]))
    assert summarise([3.0]).spread is None
    psnr = named_metric("test/psnr")
    assert psnr.show(21.234, 0.1) == "21.23 ± 0.10 dB"
    assert named_metric("test/probe_student").show(0.5) == "50.0%"
    assert named_metric("test/new_number", "lower").show(2) == "2.0000"
    assert [duration(s) for s in (None, 4.4, 187, 3720)] == ["", "4 s", "3 min 07 s", "1 h 02 min"]


def test_best_follows_the_direction() -> None:
    found = {"a": summarise([1.0]), "b": summarise([2.0]), "c": summarise([2.0]), "d": summarise([float("nan")])}
    assert best(named_metric("x", "higher"), found) == {"b", "c"}
    assert best(named_metric("x", "lower"), found) == {"a"}
    assert best(named_metric("x", "none"), found) == set()
    assert best(named_metric("x", "higher"), {"a": found["a"]}) == set()
    assert best(named_metric("x", "higher"), {"b": found["b"], "c": found["c"]}) == set()


def test_caveats() -> None:
    far = [outcome("a", 0, psnr=20.0), outcome("a", 1, psnr=20.2), outcome("b", 0, psnr=22.0)]
    far.append(outcome("b", 1, psnr=22.1))
    assert caveats(study(*far)) == []
    near = [*far, outcome("c", 0, psnr=21.0), outcome("c", 1, psnr=23.0)]  # mean 22, spread 1.41
    (line,) = caveats(study(*near))
    assert line.startswith("PSNR, 1 step: b is not told apart from noise against c (")
    (line,) = caveats(study(far[0], far[2]))
    assert line.startswith("Each variant was run with one seed")
    (line,) = caveats(study(*far[:3]))
    assert line.startswith("Some variants were run with one seed")
    assert caveats(study(*far, metrics=("test/psnr", "test/psn"))) == [
        "No run that has finished has a number called test/psn."
    ]


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a report."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def test_protocols_must_agree(study_folders: list[Path], tmp_path: Path, no_plots: None) -> None:
    runs = [outcome("a", 0), outcome("b", 0), outcome("b", 1)]
    assert protocol_warning(study(*runs)) is None
    for run in runs:
        run.protocol = "p1"
    assert protocol_warning(study(*runs)) is None
    runs[1].protocol = "p2"
    warning = protocol_warning(study(*runs))
    assert warning is not None
    assert "(p1: a, b; p2: b)" in warning
    runs[1].protocol = None
    assert "none recorded: b" in (protocol_warning(study(*runs)) or "")

    path = study_folders[0] / "test_results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol/fingerprint": "abc123"}))
    report(study_folders, tmp_path / "report")
    for name in ("report.md", "report.html"):
        assert "abc123: near" in (tmp_path / "report" / name).read_text()
    rows = list(csv.DictReader((tmp_path / "report/results.csv").open()))
    assert [row["protocol/fingerprint"] for row in rows[:2]] == ["abc123", ""]


def test_report_groups_seeds_and_its_page_is_whole(study_folders: list[Path], tmp_path: Path) -> None:
    report(study_folders, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "| near | 3 | 94.0 ± 0.0% | **92.0 ± 2.0%** | 0.5000 ± 0.0000 | 20.20 ± 0.20 dB |" in text
    assert "| close_by | 3 | 94.0 ± 0.0% | 51.0 ± 1.0% | 0.5000 ± 0.0000 | **24.15 ± 0.10 dB** |" in text
    assert "PSNR, 1 step: close_by is not told apart from noise against far (" in text
    assert "| far | 0.7500 | 0.3500 |" in text
    rows = list(csv.DictReader((tmp_path / "report/results.csv").open()))
    assert len(rows) == 9
    assert {key: rows[4][key] for key in ("variant", "seed", "state", "steps", "test/psnr")} == {
        "variant": "far",
        "seed": "1",
        "state": "finished",
        "steps": "5",
        "test/psnr": "24.1",
    }
    for name in ("comparison.png", "pareto.png", "curves.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.width > 20
    check_page((tmp_path / "report/report.html").read_text())


def test_runs_that_differ_in_more_than_the_seed_stay_apart(study_folders: list[Path]) -> None:
    config = study_folders[1] / "config.yaml"
    config.write_text(config.read_text().replace("near", "another"))
    found = study_of_folders(study_folders[:3], Path("out")).variants
    assert [len(group) for group in found.values()] == [2, 1]
    (study_folders[0] / "config.yaml").unlink()
    found = study_of_folders(study_folders[:4], Path("out")).variants
    assert list(found) == ["near/seed0", "near/seed1", "near/seed2", "far"]


def test_names_of_groups(study_folders: list[Path], tmp_path: Path) -> None:
    renamed = [study_folders[seed].rename(tmp_path / f"mine-s{seed}") for seed in range(2)]
    single = study_folders[3].rename(tmp_path / "run7")
    assert list(study_of_folders([*renamed, single], Path("out")).variants) == ["mine", "run7"]


@pytest.fixture
def ablation(study_folders: list[Path]) -> Study:
    """An ablation of which one run has failed and one is still to come."""
    base = (study_folders[0] / "config.yaml",)
    changes = {"near": {"model.weighting": "uniflow.distill.UniformWeighting"}, "far": {"model.width": 3}, "<late>": {}}
    metrics = tuple(named_metric(key) for key in DEFAULT)
    plan = Plan(Path("p.yaml"), "A & B", "First.\n\nSecond.", base, {"ema": None}, changes, (0, 1), metrics)
    runs = [run for run in plan.runs(study_folders[0].parents[2]) if (run.variant, run.seed) != ("<late>", 1)]
    for run in (run for run in runs if run.variant != "<late>"):
        made_with = {"machine": "a toaster", "commit": "abc"}
        state = State(digest=run.digest(), state=FINISHED, started="noon", seconds=61, made_with=made_with)
        if (run.variant, run.seed) == ("far", 1):
            state.state, state.error = FAILED, "<broken>"
        state.write(run.state)
    return study_of_plan(plan, runs, "uniflow ablate p.yaml")


def test_ablation(ablation: Study) -> None:
    assert [(o.variant, o.seed, o.state) for o in ablation.outcomes] == [
        ("near", 0, "finished"),
        ("near", 1, "finished"),
        ("far", 0, "finished"),
        ("far", 1, "failed"),
        ("<late>", 0, "not yet run"),
    ]
    facts = dict(ablation.facts)
    assert facts["Runs"] == "3 of 5 finished"
    assert facts["Options of all runs"] == "--ema null"
    assert (facts["Machine"], facts["Commit"], facts["Started"]) == ("a toaster", "abc", "noon")
    assert list(means_table(ablation).rows[0])[:2] == ["near", "2"]
    assert ablation.options["near"] == {"model.weighting": "UniformWeighting"}


class Page(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def check_page(text: str) -> None:
    """Of the report of `study_folders`."""
    assert not OUTSIDE.search(text), OUTSIDE.search(text)
    page = Page(text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text
    assert not page.all("script")
    assert not page.all("link")
    assert len(page.all("caption")) == len(page.all("table")) == text.count('<div class="scroll"') == 3
    # Pareto, four metrics without the reference, layers, two losses without their sum.
    assert len(page.all("svg")) == 1 + 3 + 1 + 2
    assert all(svg["role"] == "img" and "width" not in svg for svg in page.all("svg"))
    assert len(re.findall(r"<title id=", text)) == len(page.all("svg"))
    images = page.all("img")
    assert len(images) == 2 * (1 + 3)  # reconstructions and features, each with its reference
    assert all(image["alt"] for image in images)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert set(re.findall(r"(?:url\(|href=\"|labelledby=\")#?([\w-]+)", text)) <= set(ids)
    assert "#2563a8" not in text.partition("</style>")[2]  # colours are the page's


def test_page_of_an_ablation(ablation: Study) -> None:
    text = html_page(ablation, [], "no plots today", {})
    Page(text)
    assert "A &amp; B</h1>\n<p>First.</p>\n<p>Second.</p>" in text
    assert "no plots today" in text
    assert "1 of 5 runs failed: far seed 1." in text
    assert "<broken>" not in text
    assert "&lt;broken&gt;" in text
    assert "seed1.log.txt" in text
    assert "&lt;late&gt;" in text


def test_page_before_any_run_has_finished() -> None:
    late = Outcome("a", 0, Path("a"), state="not yet run")
    assert "No run has finished yet." in html_page(study(late), [], "", {})


def test_other_originals_are_shown_where_they_differ(study_folders: list[Path], tmp_path: Path, no_plots: None) -> None:
    path = study_folders[3] / "images/test.safetensors"
    rows = load_file(path)
    save_file(rows | {"original": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, path)
    path = study_folders[6] / "images/test.safetensors"
    save_file({key: torch.zeros(2, 3, 300, 200, dtype=torch.uint8) for key in load_file(path)}, path)
    report(study_folders, tmp_path / "report")
    text = (tmp_path / "report/report.html").read_text()
    assert text.count("<figcaption>original</figcaption>") == 3
    with Image.open(tmp_path / "report/comparison.png") as picture:  # runs of the first one's size
        assert 2 * 256 + 3 * 128 < picture.height < 2 * 256 + 4 * 128


def test_without_matplotlib(
    study_folders: list[Path], tmp_path: Path, no_plots: None, capsys: pytest.CaptureFixture[str]
) -> None:
    report(study_folders[:1], tmp_path / "report")
    text = (tmp_path / "report/report.html").read_text()
    assert "pip install uniflow[report]" in text
    assert "<svg" not in text
    assert "pip install uniflow[report]" in capsys.readouterr().out
    assert not (tmp_path / "report/pareto.png").exists()


def test_plots_say_their_numbers() -> None:
    runs = [outcome("$a$", s, psnr=20 + s, probe_student=0.5) for s in range(2)]
    runs.append(outcome("b", 0, psnr=19, probe_student=0.4))
    found = plots(study(*runs, metrics=("test/psnr", "test/probe_student", "test/probe_teacher")), {})
    assert [plot.title for plot in found] == [
        "Understanding against reconstruction",
        "PSNR, 1 step",
        "probe of the student",
    ]
    assert "$a$: 50.0%, 20.50 dB; b: 40.0%, 19.00 dB. Nothing beats: $a$." in found[0].alt
    assert "$a$: 20.50 ± 0.71 dB" in found[1].alt
    svg = to_svg(found[0], 1)
    assert ">$a$<" in svg
    assert "var(--series-1)" in svg


def test_pareto_front() -> None:
    points = {"low": (0.1, 9.0), "beaten": (0.2, 4.0), "middle": (0.5, 5.0), "twin": (0.5, 5.0), "high": (0.9, 1.0)}
    assert pareto_front(points) == ["low", "middle", "twin", "high"]


def test_curves_are_thinned() -> None:
    steps, values = thinned((list(range(1000)), [float(step) for step in range(1000)]))
    assert len(steps) == len(values) == 200
    assert values[0] == pytest.approx(2.0)
    assert thinned(([1, 2], [3.0, 4.0])) == ([1, 2], [3.0, 4.0])
