"""CPU time of a server and of the load generator, an image.

On a machine that others use too, throughput says little; CPU time an image still does. When all
cores are busy with nothing else, cores / (CPU time an image) is the throughput.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class CpuTime:
    """Milliseconds of CPU an image.

    Attributes:
        in_process: decode and network without a server, measured just before and after.
        server: tritonserver and its stubs.
        generator: the load generator, its start (reading the photos) included.
    """

    in_process: float
    server: float
    generator: float

    @property
    def share(self) -> float:
        """Share of the limit that server and generator on the same busy cores can reach."""
        return self.in_process / (self.server + self.generator)

    @property
    def server_share(self) -> float:
        """The same with the generator on another machine."""
        return self.in_process / self.server

    def to_dict(self) -> dict[str, float]:
        """JSON-ready fields."""
        return {**asdict(self), "share": self.share, "server_share": self.server_share}


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system CPU time so far of the processes that (still) run, and of their children that
    have ended: a worker that ends takes nothing away from what its parent used.
    """
    import psutil

    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += sum((times.user, times.system, times.children_user, times.children_system))
    return total


class CpuMeter:
    """CPU seconds used since the last look.

    Args:
        pids: gives the server's processes.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._last = self._read()

    def _read(self) -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cpu_seconds(self._pids()), children.ru_utime + children.ru_stime

    def lap(self) -> tuple[float, float]:
        """Seconds of the server, and of child processes that ended in between."""
        before, self._last = self._last, self._read()
        return self._last[0] - before[0], self._last[1] - before[1]
