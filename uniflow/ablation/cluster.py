"""Runs of an ablation as SLURM jobs, through submitit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uniflow.ablation.launch import execute, outcome_line
from uniflow.ablation.plan import Run
from uniflow.ablation.state import State

# How often a job that reaches its time limit is queued again.
MAX_REQUEUES = 100


@dataclass
class Slurm:
    """What each run asks SLURM for: one node, one task; Lightning starts a process for each GPU itself.

    Args:
        partition: partition to submit to; None is the cluster's default.
        time: limit in minutes; a run that reaches it is queued again and goes on from its last.ckpt.
        gpus: GPUs of a run.
        cpus: CPU cores of a run.
        memory: main memory of a run in GB.
        parameters: further parameters of submitit, such as slurm_account, slurm_qos, slurm_constraint, slurm_setup.
        cluster: where submitit starts the runs; local tries the same path without SLURM.
    """

    partition: str | None = None
    time: int = 240
    gpus: int = 1
    cpus: int = 8
    memory: int = 32
    parameters: dict[str, Any] = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"


class ClusterRun:
    """One run as a job; submitit queues it again when its time is over.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self) -> State:
        # By this name Lightning knows a shell inside a job: it then starts its processes itself, as on one machine.
        return execute(self.run, extra={"SLURM_JOB_NAME": "interactive"})

    def checkpoint(self) -> Any:
        """What submitit queues instead of this job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch_slurm(runs: Sequence[Run], jobs: int, folder: Path, slurm: Slurm) -> None:
    """Submit the runs as one job array, `jobs` of them at a time, and wait for all.

    Args:
        runs: the runs; their folders must be visible on the nodes.
        jobs: how many may run at a time.
        folder: for what submitit writes: job scripts, logs, results.
        slurm: what each job asks for.

    Raises:
        ImportError: if submitit is not installed.
        ValueError: if SLURM is not there, or submitit refuses a parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("the launcher slurm needs submitit: pip install uniflow[slurm]") from error
    settings: dict[str, Any] = {
        "name": "uniflow",
        "timeout_min": slurm.time,
        "nodes": 1,
        "tasks_per_node": 1,
        "gpus_per_node": slurm.gpus,
        "cpus_per_task": slurm.cpus,
        "mem_gb": slurm.memory,
        "slurm_array_parallelism": jobs,
        **({} if slurm.partition is None else {"slurm_partition": slurm.partition}),
    }
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=slurm.cluster, slurm_max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(**settings | slurm.parameters)
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"submitit refuses --slurm: {' '.join(str(error).split())}") from error
    with executor.batch():
        submitted = [executor.submit(ClusterRun(run)) for run in runs]
    print(f"{len(runs)} jobs submitted, {submitted[0].job_id} is the first; they go on if this command is ended")
    for number, (run, job) in enumerate(zip(runs, submitted, strict=True), start=1):
        try:
            line = outcome_line(run, job.result())
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
            line = f"{run.label}: the job {job.job_id} was lost: {str(error).strip().splitlines()[-1]}"
        print(f"[{number}/{len(runs)}] {line}", flush=True)
