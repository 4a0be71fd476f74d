"""The installed command: what only a process of its own can show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import SCRIPT, start

from uniflow.cli import RUNS, TOOLS, main
from uniflow.cli.progress import TerminalProgress
from uniflow.version import __version__


def test_two_commands_in_a_process_of_their_own(project: Path) -> None:
    """A tool, which imports less than `fit` does, knows short names of data; `fit` finds a module beside it.

    `--model.decoder my_pkg.MyDecoder --model.decoder.width 512`, as the README has it.
    """
    tool = ["evaluate", "embedded", "--data", "Scenes", "--data.max_objects", "6"]
    words = ["fit", "-c", "recipe.yaml", "--model.decoder", "my_pkg.MyDecoder", "--model.decoder.width", "512"]
    words += ["--run", "runs/mine"]
    code = f"import sys; from uniflow.cli import main; assert main({tool}) == 2; sys.exit(main({words}))"
    # Without the current directory on its path, as a console script is started.
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert "Scenes: max_objects must be 1 to 5, not 6" in result.stderr
    assert result.returncode == 0, result.stderr
    saved = (project / "runs/mine/config.yaml").read_text()
    assert "my_pkg.MyDecoder" in saved
    assert "width: 512" in saved
    assert "flow_depth" not in saved


def test_error_is_one_line(project: Path) -> None:
    words = ["fit", "-c", "recipe.yaml", "--model.decoder", "my_pkg.RefusingDecoder", "--run", "runs/mine"]
    process = start(*words, log="log")
    process.join()
    assert process.exitcode == 2
    text = Path("log").read_text()
    assert text.splitlines()[-1] == "uniflow: error: width must be a multiple of 7, not 8"
    assert "Traceback" not in text


def test_the_script_exits_with_the_code_of_the_command(project: Path) -> None:
    result = subprocess.run([SCRIPT, "fit", "-c", "no.yaml", "--rn", "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "uniflow: error: there is no option --rn; did you mean --run?\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = f"import sys; from uniflow.cli import main; main({arguments!r}); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, text in [*RUNS.items(), *((name, text) for name, (_, text) in TOOLS.items())]:
        assert any(line.split(maxsplit=1) == [name, text] for line in out.splitlines())
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_help_of_fit(uniflow) -> None:
    """Names that people rely on."""
    out = uniflow("fit", "--help").out
    for name in (
        "--run",
        "--model",
        "--data",
        "--trainer.max_steps",
        "--ckpt_path",
        "--checkpoint",
        "--ema",
        "--images",
    ):
        assert name in out


@pytest.mark.parametrize(("last", "shown"), [(-1, "Epoch 2"), (None, "Epoch 2"), (5, "Epoch 2/4")])
def test_a_bar_names_the_last_epoch_where_there_is_one(last: int | None, shown: str) -> None:
    bar = TerminalProgress()
    bar._trainer = SimpleNamespace(max_epochs=last)  # type: ignore[assignment]
    assert bar._get_train_description(2).strip() == shown
    assert bar.sanity_check_description == "Trying validation"
