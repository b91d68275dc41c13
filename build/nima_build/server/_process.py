"""The process group of one tritonserver: begun, waited for, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from nima_build.processes import end_with_parent
from nima_build.server._arguments import NOBODYS_FOLDER, environment
from nima_build.server._install import ServerCrashed, ServerError
from nima_build.server._ports import listens
from nima_build.server._probe import Probe

_POLL_SECONDS = 0.05


def begin_group(
    command: Sequence[str], log: BinaryIO, added: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start tritonserver in a session of its own; it ends with the thread that called this.

    Args:
        command: its command line.
        log: where its output goes.
        added: to its environment.

    Raises:
        OSError: the machine is short of something.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**environment(), **added},
        # The stubs import from the current folder first, whoever may write there.
        cwd=NOBODYS_FOLDER,
        start_new_session=True,
        # No orphaned server when this process is killed.
        preexec_fn=end_with_parent,
    )


def ask_to_end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Send SIGTERM to a tritonserver, and give it so many seconds; none where ``grace`` is 0."""
    if process.poll() is None and grace > 0:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a tritonserver and its stubs, which outlive it."""
    # The group is this server's own session.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_ready(
    process: subprocess.Popen[bytes],
    ports: Sequence[int],
    probe: Probe,
    patience: float,
    log_errors: Callable[[], str],
) -> None:
    """Return once an inference has answered.

    Args:
        process: from :func:`begin_group`.
        ports: that it will listen on.
        probe: of this server; closed here.
        patience: seconds until then.
        log_errors: the end of its log, for the message.

    Raises:
        ServerCrashed: it was ended by a signal.
        ServerError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + patience
    reason = "it does not listen yet"
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                status = process.returncode
                kind = ServerCrashed if status < 0 else ServerError
                raise kind(
                    f"tritonserver ended with status {status} while starting\n{log_errors()}"
                )
            if listens(process.pid, ports):
                result = probe()
                # Another server may have answered while this one ended for want of its ports.
                if result.alive and process.poll() is None:
                    return
                reason = result.reason
            time.sleep(_POLL_SECONDS)
    finally:
        probe.close()
    raise ServerError(
        f"no inference answered within {patience:g} s, the last attempt with: {reason}"
        f"\n{log_errors()}"
    )
