"""A signal to a whole job does not end the workers that the running step still needs."""

from __future__ import annotations

import os
import signal
import time

from test_resume import NumbersModule


def test_workers_outlive_the_signals_that_stop_a_job() -> None:
    loader = NumbersModule(batch_size=2, num_workers=2).train_dataloader()
    batches = iter(loader)
    read = [index for _ in range(2) for index in next(batches)["index"].tolist()]  # one of each: both have started
    workers = loader._iterator._workers  # type: ignore[union-attr]
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker.pid, number)
    time.sleep(0.5)
    assert all(worker.is_alive() for worker in workers)
    for batch in batches:
        read += batch["index"].tolist()
    assert len(set(read)) == len(read) == 24
    loader._iterator._shutdown_workers()  # type: ignore[union-attr]
    assert not any(worker.is_alive() for worker in workers)
