"""Whether the Python backend's stubs, processes of their own below tritonserver, are all there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from nima_build.rendering import python_instances

_POLL_SECONDS = 0.05
_SETTLED_SECONDS = 1.0


def stub_pids(server: int | None) -> frozenset[int]:
    """Process ids of the stubs of a tritonserver, read from the process table.

    Args:
        server: its process id; None where it does not run.
    """
    import psutil

    if server is None:
        return frozenset()
    running = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(server).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # this one ended just now
                if child.status() != psutil.STATUS_ZOMBIE:
                    running.add(child.pid)
    return frozenset(running)


class StubWatch:
    """Knows which stubs there ought to be.

    Args:
        running: the stubs there are (:func:`stub_pids`).
    """

    def __init__(self, running: Callable[[], frozenset[int]]) -> None:
        self._running = running
        self._known: frozenset[int] = frozenset()
        self._lost = ""
        self._an_instance = 1

    def forget(self) -> None:
        """Miss none from now on: the server ended, or begins to change its models."""
        self._known, self._lost = frozenset(), ""

    def launched(self, models: Path) -> None:
        """Miss from now on what runs now, of a server that is ready.

        Args:
            models: its rendered repository.
        """
        self._known = self._running()
        # One for each GPU: an instance count is that of one device.
        self._an_instance = max(1, round(len(self._known) / python_instances(models)))

    def changed(self, models: Path, patience: float, same_server: Callable[[], bool]) -> None:
        """Wait for the stubs of a model that went to end, and miss from then on what still runs.

        Args:
            models: the rendered repository, whose configs say how many there ought to be.
            patience: seconds until more are taken as they are. Fewer are a defect at once: a model
                that comes has its stubs before the one that goes loses its own.
            same_server: whether it is still the one of :meth:`launched`; another was counted then.
        """
        wanted = self._an_instance * python_instances(models)
        found, since = frozenset[int](), time.monotonic()
        deadline = since + patience
        while same_server() and (now := time.monotonic()) < deadline:
            if (running := self._running()) != found:
                found, since = running, now
            # As many may also be there for a moment, while some begin and others end.
            if len(found) <= wanted and now - since > _SETTLED_SECONDS:
                break
            time.sleep(_POLL_SECONDS)
        if same_server():
            self._known = found
            if lost := max(0, wanted - len(found)):
                self._lost = f"{lost} of {wanted} Python stubs went with the rollout"

    def defect(self) -> str | None:
        """Which stub is gone; None while all are there."""
        if missing := self._known - self._running():
            return f"Python stub {min(missing)} is gone"
        return self._lost or None
