"""Runs as jobs of submitit, where there is no SLURM."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uniflow.ablation import cluster
from uniflow.ablation.cluster import ClusterRun, Slurm, launch_slurm
from uniflow.ablation.plan import Run
from uniflow.ablation.state import FINISHED, read_state
from uniflow.cli import main

submitit = pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
AUTO = submitit.AutoExecutor


class FakeExecutor:
    """Stands in for submitit's AutoExecutor: notes what it is given, and runs a job when its result is asked for."""

    given: dict[str, Any]

    def __init__(self, folder: Path, cluster: str, **settings: Any) -> None:
        FakeExecutor.given = {"folder": folder, "cluster": cluster, **settings}

    def update_parameters(self, **parameters: Any) -> None:
        AUTO("jobs", cluster="local").update_parameters(**parameters)  # submitit knows them all
        self.given.update(parameters)

    def batch(self) -> Any:
        return contextlib.nullcontext()

    def submit(self, job: ClusterRun) -> Any:
        class Job:
            job_id = "7_0"
            result = staticmethod(job)

        return Job


def test_each_run_is_a_job(
    fake_uniflow: Callable[[], list[str]],
    make_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submitit, "AutoExecutor", FakeExecutor)
    runs = [make_run("a"), make_run("b", mode="fail")]
    slurm = Slurm(partition="gpu", time=90, gpus=2, cpus=4, memory=8, parameters={"slurm_account": "lab"})
    launch_slurm(runs, 3, Path("jobs"), slurm)
    given = FakeExecutor.given
    assert given["cluster"] == "slurm"
    assert (given["slurm_partition"], given["timeout_min"], given["gpus_per_node"]) == ("gpu", 90, 2)
    assert (given["cpus_per_task"], given["mem_gb"], given["slurm_array_parallelism"]) == (4, 8, 3)
    assert (given["tasks_per_node"], given["slurm_account"]) == (1, "lab")
    assert [call.split()[:2] for call in fake_uniflow()] == [["fit", "a"], ["test", "a"], ["fit", "b"]]
    printed = capsys.readouterr().out
    assert "[1/2] a, seed 0: finished" in printed
    assert "[2/2] b, seed 0: failed: uniflow: error: it is broken" in printed


def test_lightning_is_kept_from_taking_the_job_for_its_own(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cluster, "execute", lambda run, **settings: seen.update(settings))
    ClusterRun(make_run())()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    for name, value in seen["extra"].items():
        monkeypatch.setenv(name, value)
    from lightning.fabric.plugins.environments import SLURMEnvironment

    assert not SLURMEnvironment.detect()
    monkeypatch.setenv("SLURM_JOB_NAME", "uniflow")
    assert SLURMEnvironment.detect()


def test_a_job_is_queued_again_as_itself(make_run: Callable[..., Run]) -> None:
    job = ClusterRun(make_run())
    assert job.checkpoint().function is job


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        (Slurm(cluster="local", parameters={"slurm_acount": "lab"}), "slurm_acount"),
        (Slurm(), "srun"),
    ],
)
def test_refused(make_run: Callable[..., Run], tmp_path: Path, slurm: Slurm, message: str) -> None:
    if slurm.cluster == "slurm" and any((Path(p) / "srun").exists() for p in os.environ["PATH"].split(":")):
        pytest.skip("there is a SLURM here")
    with pytest.raises(ValueError, match="submitit refuses --slurm: ") as caught:
        launch_slurm([make_run()], 1, tmp_path, slurm)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_the_command_line(project: Path, uniflow: Callable[..., Any]) -> None:
    result = uniflow("ablate", "plan.yaml", "--slurm.gpu", "2")
    assert "--slurm.gpu" in result.error or "gpus" in result.error
    assert "there is no file 'plan.yaml'" in uniflow("ablate", "plan.yaml", "--slurm.gpus", "2").error


@pytest.mark.slow
def test_submitit_runs_the_real_command(project: Path) -> None:
    """One tiny run through submitit's local executor."""
    Path("plan.yaml").write_text("base: recipe.yaml\noptions: {data.train_length: 8, data.val_length: 8}\n")
    arguments = ["ablate", "plan.yaml", "--out", "out", "--launcher", "slurm", "--slurm.cluster", "local"]
    arguments += ["--slurm.gpus", "0", "--slurm.time", "20"]
    assert main(arguments) == 0
    state = read_state(Path("out/runs/base/seed0.state.json"))
    assert state is not None
    assert state.state == FINISHED
    assert "test/psnr" in Path("out/runs/base/seed0/test_results.json").read_text()
