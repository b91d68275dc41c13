"""Ends a server with all its processes when the comparison is gone, even by SIGKILL.

The kernel's signal to the children of a dead parent (PR_SET_PDEATHSIG) is of no use here: it does
not reach grandchildren, and a server whose turn it is not is stopped and would not see it. So a
process beside each server (``guard.py PID``) waits for the end of its standard input.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
from turns import pause


@contextlib.contextmanager
def guarded(pid: int | None) -> Iterator[None]:
    """Within it, a process and its descendants do not outlive this program.

    Args:
        pid: of the process, a child that leads its session.
    """
    command = [sys.executable, __file__, str(pid)]
    # Its own session: what is sent to the group of this program (Ctrl-C) does not end it.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


def main(pid: int) -> None:
    """Wait until nobody holds the other end of standard input, and end the processes."""
    try:
        first = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    os.read(sys.stdin.fileno(), 1)
    if not first.is_running():  # nor is another that has its number by now
        return
    for process in pause(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
