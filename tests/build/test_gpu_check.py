"""``make gpu-check`` where there is no GPU: it measures the CPU, and says what it did not run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nima_build import gpu_check
from nima_build.gpu import find_gpus
from nima_build.gpu_check import context as checking
from nima_build.gpu_check import pixels as pixel_steps
from nima_build.gpu_check.context import Context
from nima_build.gpu_check.network import check_cpu
from nima_build.gpu_check.pixels import (
    judge_pixels,
    measure_dali,
    measure_gpu_formats,
    measure_gpu_pixels,
)
from nima_build.metadata import ModelMetadata
from nima_client.preprocess import preprocess


def test_report_without_a_gpu(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_gpus():
        pytest.skip("this machine has a GPU: run make gpu-check")
    monkeypatch.setattr(gpu_check, "default_repository", lambda: repository)
    monkeypatch.setattr(checking, "SECONDS", 0.1)
    target = tmp_path / "report.json"
    assert gpu_check.main(["--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["machine"]["gpus"] == []
    assert report["machine"]["cores"] == os.cpu_count()
    steps = report["steps"]
    assert steps["cpu"]["status"] == "ok"
    assert steps["cpu"]["network_images_per_second"] > 0
    assert steps["cpu"]["preprocess_images_per_second"] > 0
    assert report["machine"]["packages"]["onnxruntime"]
    for name in ("pytorch", "tensorrt", "inductor", "gpu_preprocessing", "gpu_formats", "dali"):
        assert steps[name]["status"] == "skip", name
        assert steps[name]["reason"], name


def test_a_failing_step_fails_the_check_and_leaves_the_others(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_context: object) -> dict[str, object]:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(gpu_check, "default_repository", lambda: repository)
    monkeypatch.setattr(checking, "SECONDS", 0.1)
    monkeypatch.setattr(gpu_check, "STEPS", {"tensorrt": broken, "cpu": check_cpu})
    target = tmp_path / "report.json"
    assert gpu_check.main(["--json", str(target)]) == 1
    steps = json.loads(target.read_text())["steps"]
    assert steps["tensorrt"]["reason"] == "RuntimeError: the device fell off the bus"
    assert steps["cpu"]["status"] == "ok"


def test_a_run_that_is_cut_short_leaves_what_it_found(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_context: object) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "default_repository", lambda: repository)
    monkeypatch.setattr(checking, "SECONDS", 0.1)
    monkeypatch.setattr(gpu_check, "STEPS", {"cpu": check_cpu, "tensorrt": killed})
    target = tmp_path / "report.json"
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main(["--json", str(target)])
    steps = json.loads(target.read_text())["steps"]
    assert steps["cpu"]["status"] == "ok"
    assert steps["tensorrt"] == {"status": "running"}


@pytest.fixture
def context(repository: Path, tmp_path: Path, encode: Callable[..., bytes]) -> Context:
    network = repository / "nima_network" / "1"
    metadata = ModelMetadata.load(network / "model.json")
    jpegs = [encode("JPEG", (320 + 16 * n, 240), seed=n, quality=92) for n in range(3)]
    pixels = np.stack([preprocess(data, metadata.spec) for data in jpegs])
    return Context(network, metadata, ["a", "b", "c"], jpegs, pixels, tmp_path)


def test_gpu_pixels_are_measured_and_judged(
    context: Context, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of the profile default on nvImageCodec's CPU decoders, CV-CUDA stood in for."""
    pytest.importorskip("nvidia.nvimgcodec", reason="needs the extra gpu-preprocessing")
    monkeypatch.setattr(pixel_steps, "default_repository", lambda: repository)
    monkeypatch.setattr(checking, "SECONDS", 0.1)
    monkeypatch.syspath_prepend(Path(__file__).parent / "standins")
    try:
        report = measure_gpu_pixels(context, None)
    finally:
        sys.modules.pop("cvcuda", None)
    assert report["max_difference"] <= 1
    assert report["parity"]["stage"] == "triton-gpu"
    # Which is faster, a tenth of a second does not tell.
    assert report["decode_images_per_second"] > 0
    assert report["preprocess_images_per_second"] > 0


def test_every_kind_of_file_is_compared(
    context: Context, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real decoder, with a resize in the place of CV-CUDA's; and one that is off fails."""
    pytest.importorskip("nvidia.nvimgcodec", reason="needs the extra gpu-preprocessing")
    monkeypatch.setattr(pixel_steps, "default_repository", lambda: repository)
    monkeypatch.syspath_prepend(Path(__file__).parent / "standins")
    try:
        report = measure_gpu_formats(context, None)
        monkeypatch.setattr(pixel_steps, "MAX_DIFFERENCE", 0)
        strict = measure_gpu_formats(context, None)
    finally:
        sys.modules.pop("cvcuda", None)
    assert report["failed"] is False, report["too_far"]
    assert report["kinds"]["cut short"] == {
        "refused": "UNDECODABLE",
        "reference": "UNDECODABLE",
    }
    assert len(report["kinds"]) == 28
    assert strict["failed"] is True
    assert strict["too_far"]


def test_dali_is_measured_and_judged(
    context: Context, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra gpu-preprocessing")
    monkeypatch.setattr(pixel_steps, "default_repository", lambda: repository)
    monkeypatch.setattr(checking, "SECONDS", 0.1)
    report = measure_dali(context, device="cpu", device_id=None)
    assert 0 < report["mean_difference"] <= 0.5
    assert report["preprocess_images_per_second"] > 0


def test_pixels_that_are_too_far_fail_the_step(context: Context) -> None:
    near, far = context.pixels.copy(), context.pixels.copy()
    assert judge_pixels(context, near, 16)["failed"] is False
    far[0, 5, 5, 0] ^= 128
    report = judge_pixels(context, far, 16)
    assert report["max_difference"] == 128
    assert report["failed"] is True
