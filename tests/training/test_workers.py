"""The processes of a pool end with what they work for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from nima_training.workers import WorkerLost, worker_pool


def blocked_signals() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_an_exception_ends_the_tasks_that_run_and_drops_the_others() -> None:
    def work() -> None:
        with worker_pool(2) as pool:
            # A terminal sends Ctrl-C to the workers, too.
            assert signal.SIGINT in pool.submit(blocked_signals).result()
            for _ in range(20):
                pool.submit(time.sleep, 120)
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - began < 60
    assert multiprocessing.active_children() == []
    assert signal.SIGINT not in blocked_signals()


def test_a_killed_worker_is_told_in_a_sentence() -> None:
    with pytest.raises(WorkerLost, match="try fewer --workers"), worker_pool(2) as pool:
        list(pool.map(os._exit, [9]))
    assert multiprocessing.active_children() == []


KILLED = """
import os
from nima_training.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        input()
"""


def test_workers_of_a_killed_process_end(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    try:
        worker.wait(20)
    finally:
        if worker.is_running():
            worker.kill()
