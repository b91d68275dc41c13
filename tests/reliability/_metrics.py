"""Triton's own counters, read where Prometheus reads them."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from nima_client.contract import PREPROCESS_MODEL


def metrics(server: object) -> str:
    """All of them, as Prometheus would read them."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=5) as answer:
        return answer.read().decode()


def rows(text: str, name: str, selector: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of a counter where a PromQL selector fits (``instance`` always does).

    Args:
        text: of :func:`metrics`.
        name: of the counter.
        selector: what stands in the braces, with ``=`` and ``=~``.
    """
    wanted = re.findall(r'(\w+)=~?"([^"]*)"', selector)
    found = []
    for line, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if all(k == "instance" or re.fullmatch(v, labels[k]) for k, v in wanted):
            found.append((labels, float(value)))
    return found


def evaluate(expression: str, text: str) -> float:
    """A PromQL expression with the sum of each counter since the start in the place of its rate."""

    def total(found: re.Match[str]) -> str:
        return str(sum(value for _, value in rows(text, found[1], found[2])))

    plain = re.sub(r"sum\(rate\((\w+)\{([^}]*)\}\[\w+\]\)\)", total, expression)
    return float(eval(plain, {"clamp_min": max}))


def dashboard() -> dict[str, Any]:
    """The dashboard for Grafana."""
    folder = Path(__file__).resolve().parents[2] / "docker" / "observability"
    return json.loads((folder / "grafana-dashboard.json").read_text())


def queries(title: str) -> dict[str, str]:
    """The expressions of the dashboard's panels with so much in their titles, by their legends."""
    panels = [panel for panel in dashboard()["panels"] if title in panel["title"]]
    return {t["legendFormat"]: t["expr"] for panel in panels for t in panel["targets"]}


def failures(server: object, model: str) -> dict[str, float]:
    """Failed requests of a model by reason."""
    found = re.findall(
        rf'nv_inference_request_failure\{{model="{model}",reason="(\w+)",[^}}]*\}} ([\d.e+]+)',
        metrics(server),
    )
    return {reason: float(value) for reason, value in found}


def successes(server: object, model: str) -> float:
    """Requests that a model has answered."""
    (found,) = re.findall(
        rf'nv_inference_request_success\{{model="{model}",[^}}]*\}} ([\d.e+]+)', metrics(server)
    )
    return float(found)


def worked_on(server: object, model: str = PREPROCESS_MODEL) -> int:
    """Images that a model has worked on."""
    (found,) = re.findall(
        rf'nv_inference_count\{{model="{model}",[^}}]*\}} ([\d.e+]+)', metrics(server)
    )
    return int(float(found))


def pending(server: object, model: str) -> float:
    """Requests that wait at a model."""
    (found,) = re.findall(
        rf'nv_inference_pending_request_count\{{model="{model}",[^}}]*\}} ([\d.e+]+)',
        metrics(server),
    )
    return float(found)
