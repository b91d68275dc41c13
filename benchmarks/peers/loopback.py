"""A network namespace with nothing but ``lo``, for servers that bind more than they are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

_INSIDE = "NIMA_LOOPBACK_ONLY"
_SCRIPT = 'ip link set lo up && exec "$@"'


def enter() -> bool:
    """Run this program again inside such a namespace; whether it is inside now.

    False where none can be made (no ``unshare`` or ``ip``, or not allowed).
    """
    if os.environ.get(_INSIDE) == "1":
        return True
    prefix = ["unshare", "--net", "--map-root-user", "sh", "-c", _SCRIPT, "-"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    if subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        return False
    os.environ[_INSIDE] = "1"
    sys.stdout.flush()
    os.execvp(prefix[0], [*prefix, sys.executable, *sys.argv])
