"""The NVIDIA GPUs of this machine, by way of nvidia-smi, and whether what drives them is there."""

from __future__ import annotations

import importlib.util
import os
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
        memory_mib: its memory in MiB.
    """

    name: str
    compute_capability: str
    driver: str
    memory_mib: int = 0


def is_installed(name: str) -> bool:
    """Whether a Python package, ``nvidia.nvimgcodec`` say, is there; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def find_gpus() -> list[Gpu]:
    """GPUs in the order of their PCI bus; empty without a driver or without a GPU.

    ``CUDA_VISIBLE_DEVICES`` (indices or UUIDs) chooses and orders them as it does for CUDA under
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    return list(visible_gpus().values())


def visible_gpus() -> dict[str, Gpu]:
    """Those of :func:`find_gpus` by their UUIDs (``GPU-…``), in the same order."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = "--query-gpu=index,uuid,name,compute_cap,driver_version,memory.total"
    try:
        done = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    gpus = {
        (index, uuid): Gpu(name, capability, driver, int(memory) if memory.isdigit() else 0)
        for index, uuid, name, capability, driver, memory in (row for row in rows if len(row) == 6)
    }
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Of a MIG slice nvidia-smi gives no facts, only of its GPU.
    if visible is None or "MIG-" in visible:
        return {uuid: gpu for (_, uuid), gpu in gpus.items()}
    chosen: dict[str, Gpu] = {}
    for wanted in (part.strip() for part in visible.split(",")):
        found = {
            uuid: gpu
            for (index, uuid), gpu in gpus.items()
            if wanted and (wanted == index or uuid.startswith(wanted))
        }
        if not found:
            break  # as CUDA does: what follows an unknown device is not seen either
        chosen |= found
    return chosen
