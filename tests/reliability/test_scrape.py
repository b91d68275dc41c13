"""What Prometheus scrapes: promtool reads both configurations; no pod without a server is in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "observability"
PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
POD = "__meta_kubernetes_pod_"
OURS = {
    "nima-kubernetes": {
        f"{POD}label_app_kubernetes_io_name": "nima",
        f"{POD}container_port_name": "metrics",
    },
    "nima-kserve": {
        f"{POD}label_serving_kserve_io_inferenceservice": "nima",
        f"{POD}container_name": "kserve-container",
    },
}


def jobs(name: str) -> dict[str, Any]:
    configuration = yaml.safe_load((FOLDER / name).read_text())
    return {job["job_name"]: job for job in configuration["scrape_configs"]}


def is_scraped(job: dict[str, Any], labels: dict[str, str]) -> bool:
    """By the rules of ``action: keep``, which match all of the joined labels."""
    return all(
        re.fullmatch(rule["regex"], ";".join(labels.get(n, "") for n in rule["source_labels"]))
        for rule in job["relabel_configs"]
        if rule.get("action") == "keep"
    )


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: scripts/promtool.sh brings it")
@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus-static.yaml"])
def test_promtool_reads_it(name: str, tmp_path: Path) -> None:
    shutil.copy(FOLDER / "prometheus-rules.yaml", tmp_path)
    # Debian's promtool is built without the discovery of pods.
    text = (FOLDER / name).read_text().replace("kubernetes_sd_configs: [{ role: pod }]", "")
    assert "kubernetes_sd" not in text
    (tmp_path / name).write_text(text)
    ended = subprocess.run(
        [str(PROMTOOL), "check", "config", name],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "rules found" in ended.stdout


@pytest.mark.parametrize("name", OURS)
def test_only_running_pods_of_ours_are_scraped(name: str) -> None:
    job, ours = jobs("prometheus.yaml")[name], OURS[name]
    assert is_scraped(job, {**ours, f"{POD}phase": "Running"})
    for phase in ("Pending", "Succeeded", "Failed", "Unknown"):
        assert not is_scraped(job, {**ours, f"{POD}phase": phase}), phase
    for label in ours:
        assert not is_scraped(job, {**ours, label: "other", f"{POD}phase": "Running"}), label


@pytest.mark.parametrize("name", ["deployment-cpu.yaml", "deployment-gpu.yaml"])
def test_pods_are_found_in_one_way(name: str) -> None:
    """By nima-kubernetes; what a chart's own job for annotated pods finds too is counted twice."""
    manifest = yaml.safe_load((FOLDER.parent / "kubernetes" / name).read_text())
    template = manifest["spec"]["template"]
    ours = template["metadata"]["labels"]
    assert not [key for key in template["metadata"].get("annotations", {}) if "prometheus" in key]
    (container,) = template["spec"]["containers"]
    (port,) = (port["name"] for port in container["ports"] if port["containerPort"] == 8002)
    labels = {
        f"{POD}phase": "Running",
        f"{POD}label_app_kubernetes_io_name": ours["app.kubernetes.io/name"],
        f"{POD}container_port_name": port,
    }
    assert is_scraped(jobs("prometheus.yaml")["nima-kubernetes"], labels)


def test_no_target_on_kubernetes_that_is_not_there() -> None:
    """A fixed one would be down for ever, and NimaDown with it."""
    assert all("static_configs" not in job for job in jobs("prometheus.yaml").values())
    assert all("static_configs" in job for job in jobs("prometheus-static.yaml").values())
