"""``make gpu-check``: what of the GPU path works on this machine, and how fast; one JSON.

Every step is bounded, says what it found and goes on when something is not there. A step is
``ok``, ``skip`` (with the reason) or ``fail``; the exit status is 1 when any failed. The report is
written after every step, so that a run that is cut short leaves what it found until then; the step
it was in is ``running``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nima_build.golden import golden_photos
from nima_build.gpu import find_gpus
from nima_build.gpu_check import context, network, pixels
from nima_build.gpu_check.context import Context, Skip, Step
from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
from nima_build.repository import default_repository
from nima_client._files import write_atomic
from nima_client._os_errors import in_words, reason
from nima_client.contract import NETWORK_MODEL
from nima_client.preprocess import preprocess

_PACKAGES = (
    "torch", "tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings", "cuda-bindings",
    "nvidia-nvimgcodec-cu12", "nvidia-nvjpeg-cu12", "cvcuda-cu12", "nvidia-dali-cuda120",
    "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "cvcuda-cu13", "nvidia-dali-cuda130",
    "onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "simplejpeg",
)  # fmt: skip

STEPS: dict[str, Step] = {
    "cpu": network.check_cpu,
    "pytorch": network.check_pytorch,
    "tensorrt": network.check_tensorrt,
    "inductor": network.check_inductor,
    "gpu_preprocessing": pixels.check_gpu_preprocessing,
    "gpu_formats": pixels.check_gpu_formats,
    "dali": pixels.check_dali,
}


def run_checks(
    photos: Sequence[Path],
    save: Callable[[dict[str, Any]], None],
    chosen: Sequence[str] = (),
) -> dict[str, Any]:
    """Run every step, or those that are chosen.

    Args:
        photos: image files.
        chosen: keys of :data:`STEPS`; empty takes all.
        save: called with the report before and after each step.

    Raises:
        ArtefactError: there is no exported network, or a photo cannot be read.
    """
    folder = default_repository() / NETWORK_MODEL / "1"
    metadata = ModelMetadata.load(folder / METADATA_NAME)
    jpegs = [_as_jpeg(path) for path in photos]
    steps: dict[str, Any] = {}
    report: dict[str, Any] = {
        "machine": _machine(),
        "checkpoint_sha256": metadata.checkpoint_sha256,
        "photos": len(photos),
        "seconds_per_rate": context.SECONDS,
        "steps": steps,
    }
    with tempfile.TemporaryDirectory() as scratch:
        expected = np.stack([preprocess(data, metadata.spec) for data in jpegs])
        names = [path.name for path in photos]
        everything = Context(folder, metadata, names, jpegs, expected, Path(scratch))
        for name, step in STEPS.items():
            if chosen and name not in chosen:
                continue
            steps[name] = {"status": "running"}
            save(report)
            start = time.perf_counter()
            try:
                found = step(everything)
                status = "fail" if found.pop("failed", False) else "ok"
            except Skip as reason:
                found, status = {"reason": str(reason)}, "skip"
            except Exception as error:  # whatever a driver does, the other steps still run
                found, status = {"reason": f"{type(error).__name__}: {error}"}, "fail"
            seconds = round(time.perf_counter() - start, 1)
            steps[name] = {"status": status, "seconds": seconds, **found}
            save(report)
            print(f"{name}: {status} ({seconds} s) {found.get('reason', '')}", flush=True)
    return report


def _machine() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions,
        "gpus": [asdict(gpu) for gpu in find_gpus()],
    }


def _as_jpeg(path: Path) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    try:
        Image.open(path).convert("RGB").save(file, "JPEG", quality=92)
    except OSError as error:
        raise ArtefactError(f"cannot read the photo {path}: {reason(error)}") from None
    return file.getvalue()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 when a step failed or the check could not start."""
    parser = argparse.ArgumentParser(prog="python -m nima_build.gpu_check", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="report to write")
    parser.add_argument(
        "photos", type=Path, nargs="*", help="image files; by default those of scikit-image"
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[], help="by default all")
    options = parser.parse_args(arguments)

    def save(report: dict[str, Any]) -> None:
        write_atomic(options.json, (json.dumps(report, indent=2) + "\n").encode())

    try:
        report = run_checks(options.photos or golden_photos(), save, options.steps)
    except (ArtefactError, OSError) as error:
        print(f"gpu-check: {in_words(error)}", file=sys.stderr)
        return 1
    print(f"wrote {options.json}")
    if not report["machine"]["gpus"]:
        print("no NVIDIA GPU here: the GPU path has not been run")
    return int(any(step["status"] == "fail" for step in report["steps"].values()))
