"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from nima_build.cores import available_cores

_PACKAGES = ("numpy", "pillow", "simplejpeg", "cykooz.resizer", "onnxruntime", "nvidia-pytriton")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def describe_machine() -> dict[str, Any]:
    """CPU, cores at hand, memory, kernel, versions, and the load of others when the run began."""
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_gib": round(_memory_gib(), 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def one_line(machine: dict[str, Any]) -> str:
    """The machine in a line, for a table's caption."""
    cores = machine["cores"]
    return (
        f"{cores} core{'' if cores == 1 else 's'} of {machine['cpu']}, "
        f"{machine['memory_gib']:g} GiB, "
        f"Python {machine['python']}, load average {machine['load_average_before']:g} before"
    )
