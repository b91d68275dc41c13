"""A Python model that has stood still must not answer: the answer would go to another request.

Triton's Python backend gives a request up as failed when its stub has shown no sign of life for a
second (it was stopped, frozen, or got no CPU), and then sends the stub the next one. What comes
back it takes for the answer to that, whichever it answers: a stub that goes on after the second
hands out the scores of one photo as those of another (seen with tritonserver 2.51). A process that
ends instead costs errors that say so, and a restart.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

_BEAT_SECONDS = 0.1
# The backend gives up a second after the stub's last sign of life, which it gives every 0.3 s.
_LIMIT_SECONDS = 0.65
# A thread that competes for a core waits for one often and not for long.
_TURN_SECONDS = 0.1
# A request that came while the process stood still is begun within this time after.
AFTERMATH_SECONDS = 1.0


class _Moment(NamedTuple):
    """The clock, and the kernel's count of a thread: seconds it waited for a core, and turns."""

    clock: float
    queued: float
    turns: int


class StallWatch:
    """Knows whether this process stood still, and ends it rather than let it answer then.

    A thread looks at the clock ten times a second. It is late, too, where other code holds the
    interpreter's lock for long; but then it asks for the lock again every few milliseconds, and the
    kernel counts that. Where the kernel does not (no ``schedstat``), nothing is watched.

    Args:
        name: of the model, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._stood_still = float("-inf")
        self._last: _Moment | None = None
        self._scheduler = -1
        thread = threading.Thread(target=self._beat_forever, name="nima-stall", daemon=True)
        thread.start()
        # Held open: to open it for every look takes ten times as long, in every process.
        with contextlib.suppress(OSError):
            self._scheduler = os.open(
                f"/proc/self/task/{thread.native_id}/schedstat", os.O_RDONLY | os.O_CLOEXEC
            )
        self._last = self._now()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Around all that makes up one answer of the model to Triton."""
        began = time.monotonic()
        self._require_no_standstill(began - AFTERMATH_SECONDS)
        yield
        self._require_no_standstill(began)

    def _require_no_standstill(self, since: float) -> None:
        last = self._last
        # The thread may not have had its turn since.
        if last is not None and time.monotonic() - last.clock > _LIMIT_SECONDS:
            self._beat()
        if self._stood_still > since:
            self._end()

    def _beat_forever(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            if self._last is not None:
                self._beat()

    def _beat(self) -> None:
        with self._lock:
            last, now = self._last, self._now()
            if last is not None and now is not None:
                if _still(last, now):
                    self._stood_still = now.clock
                self._last = now

    def _now(self) -> _Moment | None:
        try:
            _, queued, turns = os.pread(self._scheduler, 96, 0).split()
        except (OSError, ValueError):
            return None
        return _Moment(time.monotonic(), int(queued) / 1e9, int(turns))

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            print(
                f"{self._name} stood still for so long that Triton may have given its request up: "
                "the process ends, lest its answer be taken for that to another request",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        os._exit(1)


def _still(before: _Moment, after: _Moment) -> bool:
    """Whether the process stood still between two moments of its watching thread."""
    turns = after.turns - before.turns
    queued = min(after.queued - before.queued, turns * _TURN_SECONDS)
    alive = queued + turns * sys.getswitchinterval()
    return after.clock - before.clock - alive > _LIMIT_SECONDS
