"""The NVIDIA GPUs of this machine, by way of nvidia-smi: no Python package is needed for it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: e.g. ``NVIDIA L4``.
        compute_capability: e.g. ``8.9``.
        driver: driver version, e.g. ``570.86.15``.
    """

    name: str
    compute_capability: str
    driver: str


def find_gpus() -> list[Gpu]:
    """GPUs in the order of their index; empty without a driver or without a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = "--query-gpu=name,compute_cap,driver_version"
    try:
        done = subprocess.run(
            [command, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [Gpu(*row) for row in rows if len(row) == 3]
