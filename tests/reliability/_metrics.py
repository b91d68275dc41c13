"""Triton's own counters, read where Prometheus reads them."""

from __future__ import annotations

import re
import urllib.request

from nima_client.contract import PREPROCESS_MODEL


def metrics(server: object) -> str:
    """All of them, as Prometheus would read them."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=5) as answer:
        return answer.read().decode()


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
