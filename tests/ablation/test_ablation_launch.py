"""Runs as processes, with a stand-in for `uniflow`: what is kept, continued, redone, marked as failed, left alone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from uniflow.ablation import tool
from uniflow.ablation.launch import discard, execute, last_line, launch_local
from uniflow.ablation.plan import Run
from uniflow.ablation.state import FAILED, FINISHED, INTERRUPTED, RUNNING, State, read_state

Calls = Callable[[], list[str]]
MakeRun = Callable[..., Run]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_trains_evaluates_and_keeps(fake_uniflow: Calls, make_run: MakeRun) -> None:
    run = make_run()
    state = execute(run)
    assert state.state == FINISHED
    assert fake_uniflow() == ["fit a seed0 - -", "test a seed0 last -"]
    assert read_state(run.state) == state
    assert state.seconds > 0
    assert "torch" in state.made_with["versions"]
    assert state.command == "uniflow fit -c recipe.yaml --seed_everything 0 --run out/runs/a/seed0"
    log = run.log.read_text()
    assert "$ uniflow fit -c" in log
    assert "$ uniflow test -c" in log
    assert "training" in log
    assert execute(run).state == FINISHED
    assert len(fake_uniflow()) == 2
    (run.folder / "test_results.json").unlink()
    assert execute(run).state == FINISHED
    assert fake_uniflow()[2:] == ["test a seed0 last -"]


@pytest.mark.parametrize(
    ("mode", "state", "error"),
    [
        ("fail", FAILED, "uniflow: error: it is broken"),
        ("killed", FAILED, "ended by SIGKILL; the log ends with: training killed"),
        ("no_results", FAILED, "uniflow test wrote no test_results.json"),
        ("interrupted", INTERRUPTED, ""),
    ],
)
def test_how_a_run_can_end(fake_uniflow: Calls, make_run: MakeRun, mode: str, state: str, error: str) -> None:
    run = make_run(mode=mode)
    found = execute(run)
    assert (found.state, found.error) == (state, error)
    assert read_state(run.state) == found


def test_continues_from_the_last_checkpoint(fake_uniflow: Calls, make_run: MakeRun) -> None:
    run = make_run(mode="killed")
    first = execute(run)
    assert execute(run).seconds > first.seconds
    assert fake_uniflow() == ["fit a seed0 - -", "fit a seed0 last -"]


def test_restarts_without_a_checkpoint(fake_uniflow: Calls, make_run: MakeRun) -> None:
    run = make_run(mode="fail")
    execute(run)
    (run.folder / "events.left").write_text("")
    execute(run)
    assert fake_uniflow() == ["fit a seed0 - -"] * 2
    assert "already holds a run" not in run.log.read_text()
    assert not (run.folder / "events.left").exists()


def test_only_the_evaluation_is_left(fake_uniflow: Calls, make_run: MakeRun) -> None:
    run = make_run(mode="no_results")
    assert execute(run).fitted
    execute(run)
    assert [call.split()[0] for call in fake_uniflow()] == ["fit", "test", "test"]


def test_time_of_a_killed_attempt_counts_up_to_its_last_line(fake_uniflow: Calls, make_run: MakeRun) -> None:
    run = make_run()
    run.folder.mkdir(parents=True)
    run.log.write_text("step 1\n")
    began = run.log.stat().st_mtime - 1000
    State(digest=run.digest(), state=RUNNING, attempt=began, seconds=50, started="then").write(run.state)
    state = execute(run)
    assert 1050 <= state.seconds < 1100
    assert state.started == "then"


def test_a_locked_run_is_left_alone(fake_uniflow: Calls, make_run: MakeRun) -> None:
    run = make_run()
    run.folder.mkdir(parents=True)
    with run.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert execute(run).state == RUNNING
        with pytest.raises(ValueError, match="is being run by another process"):
            discard(run)
    assert not fake_uniflow()
    assert execute(run).state == FINISHED


def launch_in_a_process(run: Run) -> subprocess.Popen[bytes]:
    """`launch_local` of the run with the stand-in, as the leader of a group of processes."""
    code = f"""
import sys
from pathlib import Path
from uniflow.ablation import launch
from uniflow.ablation.plan import Run
launch.COMMAND = (sys.executable, "-S", "-E", "fake.py")
launch.surroundings = dict
launch.launch_local([Run("a", 0, (Path("recipe.yaml"),), {dict(run.options)!r}, Path({str(run.folder)!r}))], 1)
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        wait_for((run.folder / "last.ckpt").exists)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process


def test_all_killed_at_once(fake_uniflow: Calls, make_run: MakeRun, tmp_path: Path) -> None:
    """As by kill -9 of the group; with real training: test_ablation_kill.py."""
    run = make_run(mode="slow")
    process = launch_in_a_process(run)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    state = read_state(run.state)
    assert state is not None
    assert (state.state, state.fitted) == (RUNNING, False)
    (tmp_path / "go").touch()
    wait_for(lambda: execute(run).state == FINISHED)  # the stand-in may need a moment to die and free the lock
    assert fake_uniflow() == ["fit a seed0 - -", "fit a seed0 last -", "test a seed0 last -"]


def test_the_lock_outlives_the_parent(fake_uniflow: Calls, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(mode="slow")
    process = launch_in_a_process(run)
    process.kill()
    process.wait()
    try:
        assert execute(run).state == RUNNING
        assert len(fake_uniflow()) == 1
    finally:
        (tmp_path / "go").touch()
    wait_for(lambda: execute(run).state == FINISHED)
    assert fake_uniflow()[1] == "fit a seed0 last -"


def test_one_failure_does_not_stop_the_rest(
    fake_uniflow: Calls, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    launch_local([make_run("a"), make_run("b", mode="fail"), make_run("c")], jobs=1)
    assert [call.split()[1] for call in fake_uniflow()] == ["a", "a", "b", "c", "c"]
    printed = capsys.readouterr().out
    assert "[2/3] b, seed 0: failed: uniflow: error: it is broken" in printed
    assert "[3/3] c, seed 0: finished" in printed


def test_several_at_a_time_have_one_thread_each(
    fake_uniflow: Calls, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run("a", mode="slow"), make_run("b", mode="slow")]
    thread = threading.Thread(target=launch_local, args=(runs, 2))
    thread.start()
    wait_for(lambda: all((run.folder / "last.ckpt").exists() for run in runs))  # both before either has ended
    (tmp_path / "go").touch()
    thread.join()
    assert sorted(fake_uniflow())[:2] == ["fit a seed0 - 1", "fit b seed0 - 1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    launch_local([make_run("c")], 2)
    assert fake_uniflow()[-1] == "test c seed0 last 3"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that a shell started in the background ignores Ctrl-C; this one must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_processes(
    fake_uniflow: Calls, make_run: MakeRun, tmp_path: Path, number: signal.Signals
) -> None:
    run, waiting = make_run(mode="slow"), make_run("b")

    def interrupt() -> None:
        wait_for((run.folder / "last.ckpt").exists)
        signal.pthread_kill(main, number)

    main = threading.main_thread().ident
    assert main is not None
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        launch_local([run, waiting], jobs=1)
    thread.join()
    state = read_state(run.state)
    assert state is not None
    assert state.state == INTERRUPTED
    assert not waiting.state.exists()
    (tmp_path / "go").touch()
    launch_local([run, waiting], jobs=1)
    calls = fake_uniflow()
    assert calls[:3] == ["fit a seed0 - -", "fit a seed0 last -", "test a seed0 last -"]
    assert calls[3:] == ["fit b seed0 - -", "test b seed0 last -"]


@pytest.fixture
def ablate(fake_uniflow: Calls, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`uniflow ablate` of a plan with the variants a (of this mode) and b; the stand-in's options are not parsed."""
    monkeypatch.setattr(tool, "check_options", lambda runs: None)

    def call(mode: str = "", **arguments: object) -> int:
        variants = {"a": {"model.mode": mode} if mode else {}, "b": {"model.width": 3}}
        plan = {"base": "recipe.yaml", "variants": variants, "seeds": [0, 1], "metrics": {"test/psnr": "higher"}}
        Path("plan.yaml").write_text(yaml.safe_dump(plan))
        return tool.ablate(Path("plan.yaml"), out=Path("out"), **arguments)  # type: ignore[arg-type]

    return call


def test_ablate(ablate: Callable[..., int], fake_uniflow: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate() == 0
    assert len(fake_uniflow()) == 8
    assert {"report.html", "report.md", "results.csv"} <= {file.name for file in Path("out").iterdir()}
    assert "| a | 2 | 20.50 ± 0.71 dB |" in Path("out/report.md").read_text()
    capsys.readouterr()
    assert ablate() == 0
    assert "4 runs, 4 finished before" in capsys.readouterr().out
    assert len(fake_uniflow()) == 8
    assert ablate(seeds=[0, 7], only=["b"]) == 0
    assert fake_uniflow()[8:] == ["fit b seed7 - -", "test b seed7 last -"]


def test_ablate_marks_failures(ablate: Callable[..., int], fake_uniflow: Calls) -> None:
    assert ablate("fail") == 1
    assert [call.split()[:3] for call in fake_uniflow() if call.startswith("test")] == [
        ["test", "b", "seed0"],
        ["test", "b", "seed1"],
    ]
    for name in ("report.md", "report.html", "results.csv"):
        assert "failed" in Path("out", name).read_text()
    assert "it is broken" in Path("out/report.md").read_text()
    assert ablate("fail", only=["b"]) == 0


def test_ablate_refuses_or_redoes_what_was_made_with_other_settings(
    ablate: Callable[..., int], fake_uniflow: Calls
) -> None:
    assert ablate() == 0
    with pytest.raises(ValueError, match=r"holds 2 runs .* \(a, seed 0; a, seed 1\): --redo deletes them"):
        ablate("changed")
    assert len(fake_uniflow()) == 8
    assert ablate("changed", only=["b"]) == 0
    assert ablate("changed", redo=True) == 0
    assert [call.split()[1] for call in fake_uniflow()[8:]] == ["a"] * 4
    Path("recipe.yaml").write_text("model: {width: 5}\n")
    with pytest.raises(ValueError, match="holds 4 runs"):
        ablate("changed")


def test_ablate_refuses_a_folder_of_somebody_else(ablate: Callable[..., int], fake_uniflow: Calls) -> None:
    Path("out/runs/a/seed0").mkdir(parents=True)
    Path("out/runs/a/seed0/config.yaml").write_text("mine")
    with pytest.raises(ValueError, match="holds 1 runs that were made with other settings"):
        ablate()
    assert not fake_uniflow()


def test_dry_run_writes_nothing(
    ablate: Callable[..., int], fake_uniflow: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate(dry_run=True, options={"model.height": 4}) == 0
    printed = capsys.readouterr().out
    assert "# a, seed 0: not yet run\nuniflow fit -c recipe.yaml --model.height 4 --seed_everything 0" in printed
    assert "--model.height 4 --model.width 3 --seed_everything 1 --run out/runs/b/seed1" in printed
    assert not Path("out").exists()
    assert not fake_uniflow()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"only": ["aa"]}, "--only: there is no variant 'aa'; did you mean a? known: a, b"),
        ({"seeds": [1, 1]}, "--seeds must be different whole numbers"),
        ({"seeds": []}, "--seeds must be different whole numbers"),
        ({"options": {"run": "x"}}, "--options: run cannot be set here"),
    ],
)
def test_bad_arguments(ablate: Callable[..., int], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ablate(**arguments)


def test_a_broken_state_is_one_line(fake_uniflow: Calls, make_run: MakeRun) -> None:
    run = make_run()
    run.folder.parent.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"state": "finished"})):
        run.state.write_text(text)
        with pytest.raises(ValueError, match=r"seed0.state.json does not hold the state of a run .* delete it"):
            execute(run)


def test_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == "there is no log"
    log.write_text("$ uniflow fit\n\n")
    assert last_line(log) == "the log is empty"
    log.write_bytes(b"x" * 40000 + b"\nfirst\r  50 %\r\x1b[1mlast \xff\x1b[0m\n\n$ uniflow test\n")
    assert last_line(log) == "last \N{REPLACEMENT CHARACTER}"
