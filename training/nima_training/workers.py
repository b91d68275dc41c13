"""Processes that share the work of a command, and end with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from nima_client._signals import children_without_ctrl_c


class WorkerLost(ValueError):
    """A worker process ended in the middle of its work; the message says what to do."""


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """An executor of spawned processes.

    They end with this process, even if that is killed; at once when the block is left by an
    exception (Ctrl-C, a failed task), with what they were doing undone and unreported.

    Raises:
        WorkerLost: one of them was killed.
    """
    others = set(active_children())
    executor = _Pool(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield executor
    except BaseException as error:
        # Shutting down waits for all tasks that have begun, and those may take minutes.
        for process in set(active_children()) - others:
            process.kill()
        executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise WorkerLost(
                "a worker process was killed, as by the system when memory runs out: try fewer "
                "--workers; the same command goes on with what is kept"
            ) from error
        raise
    executor.shutdown()


class _Pool(ProcessPoolExecutor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # Which may start a process.
        with children_without_ctrl_c():
            return super().submit(fn, *args, **kwargs)


def _end_with_parent() -> None:
    """Else a worker waits for ever for a task: it holds both ends of the pipe that brings them."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
