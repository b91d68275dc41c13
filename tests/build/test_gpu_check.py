"""``make gpu-check`` where there is no GPU: it measures the CPU, and says what it did not run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nima_build import gpu_check
from nima_build.gpu import find_gpus


def test_report_without_a_gpu(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_gpus():
        pytest.skip("this machine has a GPU: run make gpu-check")
    monkeypatch.setattr(gpu_check, "default_repository", lambda: repository)
    monkeypatch.setattr(gpu_check, "SECONDS", 0.1)
    target = tmp_path / "report.json"
    assert gpu_check.main(["--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["machine"]["gpus"] == []
    assert report["machine"]["cores"] == os.cpu_count()
    steps = report["steps"]
    assert steps["cpu"]["status"] == "ok"
    assert steps["cpu"]["network_images_per_second"] > 0
    assert steps["cpu"]["decode_images_per_second"] > 0
    for name in ("pytorch", "tensorrt", "gpu_preprocessing", "dali"):
        assert steps[name]["status"] == "skip", name
        assert steps[name]["reason"], name


def test_a_failing_step_fails_the_check_and_leaves_the_others(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_context: object) -> dict[str, object]:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(gpu_check, "default_repository", lambda: repository)
    monkeypatch.setattr(gpu_check, "SECONDS", 0.1)
    monkeypatch.setattr(gpu_check, "STEPS", {"tensorrt": broken, "cpu": gpu_check.check_cpu})
    target = tmp_path / "report.json"
    assert gpu_check.main(["--json", str(target)]) == 1
    steps = json.loads(target.read_text())["steps"]
    assert steps["tensorrt"]["reason"] == "RuntimeError: the device fell off the bus"
    assert steps["cpu"]["status"] == "ok"
