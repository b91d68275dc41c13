"""Cores that this process may use: what `nima serve` and the docker entrypoint count by."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores(
    cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """Cores by affinity or by CPU quota, whichever allows fewer; the machine may have more.

    A quota (``docker run --cpus``, a Kubernetes limit, systemd's ``CPUQuota=``) is rounded up: of
    2.5 cores 3 are used. Those of the groups above count too.

    Args:
        cgroups: where the control groups are mounted, of version 1 or 2.
        membership: the groups of this process, as in ``cgroup(7)``.
    """
    return min([len(os.sched_getaffinity(0)), *_quotas(cgroups, membership)])


def _quotas(cgroups: Path, membership: Path) -> Iterator[int]:
    """Whole cores that each quota allows."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            root, read = cgroups, _quota_v2
        elif "cpu" in controllers.split(","):
            root, read = cgroups / "cpu", _quota_v1
        else:
            continue
        # A container may see the host's names and only its own group, mounted at the root.
        folder = root / group.strip("/")
        while folder.is_relative_to(root):
            with contextlib.suppress(OSError, ValueError):
                quota, period = read(folder)
                if quota > 0 and period > 0:
                    yield math.ceil(quota / period)
            folder = folder.parent


def _quota_v2(folder: Path) -> tuple[int, int]:
    quota, period = (folder / "cpu.max").read_text().split()
    return (0 if quota == "max" else int(quota)), int(period)


def _quota_v1(folder: Path) -> tuple[int, int]:
    # -1 is none.
    return (
        int((folder / "cpu.cfs_quota_us").read_text()),
        int((folder / "cpu.cfs_period_us").read_text()),
    )
