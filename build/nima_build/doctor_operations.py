"""Checks of `nima doctor` from outside the model: closed APIs, clock, queue."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from nima_build.doctor_finding import Finding, Target, one_line
from nima_client.contract import MODEL_NAME, NETWORK_MODEL, PREPROCESS_MODEL

_CLOCK_SECONDS = 30.0


def closed_apis(target: Target) -> Finding:
    """Whoever may reach the server must not be able to load models or map memory."""
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    attempts: dict[str, Callable[[triton.InferenceServerClient], object]] = {
        "model-repository": lambda c: c.get_model_repository_index(),
        "shared-memory": lambda c: c.get_system_shared_memory_status(),
        "trace": lambda c: c.get_trace_settings(),
        "logging": lambda c: c.get_log_settings(),
    }
    if target.tls is not None:
        return Finding("closed APIs", "skipped", "asked over plain text only")
    still_open = []
    with triton.InferenceServerClient(target.url) as client:
        for name, call in attempts.items():
            try:
                call(client)
            except InferenceServerException as error:
                if "restricted" in str(error):
                    continue
            still_open.append(name)
    if still_open:
        return Finding(
            "closed APIs", "warning", f"open to everybody: {', '.join(still_open)}",
            "restrict them with --grpc-restricted-protocol and --http-restricted-api (SECURITY.md)",
        )  # fmt: skip
    return Finding("closed APIs", "ok", f"closed without the admin token: {', '.join(attempts)}")


def clock(http_url: str, timeout: float) -> Finding:
    from email.utils import parsedate_to_datetime

    try:
        with urllib.request.urlopen(f"http://{http_url}/v2", timeout=timeout) as answer:
            said = answer.headers.get("Date")
    except (urllib.error.URLError, OSError) as error:
        return Finding("clock", "skipped", f"{http_url}: {one_line(error)}")
    if said is None:
        return Finding("clock", "skipped", "the server does not say what time it has")
    difference = parsedate_to_datetime(said).timestamp() - time.time()
    detail = f"{difference:+.0f} s between the server's clock and this one"
    if abs(difference) > _CLOCK_SECONDS:
        return Finding(
            "clock", "warning", detail,
            "set both by NTP: certificates, traces and logs go by it (deadlines do not)",
        )  # fmt: skip
    return Finding("clock", "ok", detail)


def queue(metrics_url: str, timeout: float) -> Iterator[Finding]:
    try:
        with urllib.request.urlopen(f"http://{metrics_url}/metrics", timeout=timeout) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, OSError) as error:
        yield Finding(
            "metrics", "warning", f"{metrics_url}: {one_line(error)}",
            "alerts and the autoscaler need it: check --metrics-port and the network policy",
        )  # fmt: skip
        return

    def total(metric: str, model: str, **labels: str) -> float:
        rows = re.findall(rf'^{metric}\{{(.*model="{model}".*)\}} ([\d.e+]+)$', text, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(v) for found, v in rows if all(w in found for w in wanted))

    waiting = total("nv_inference_pending_request_count", PREPROCESS_MODEL)
    done = total("nv_inference_request_success", MODEL_NAME)
    yield Finding("queue", "ok", f"{waiting:g} requests wait, {done:g} answered since the start")
    broken = {
        model: total("nv_inference_request_failure", model, reason="BACKEND")
        for model in (PREPROCESS_MODEL, NETWORK_MODEL)
    }
    # A refused image is a failure of the preprocessing by Triton's count, and no fault.
    if broken[NETWORK_MODEL]:
        yield Finding(
            "failures", "warning", f"the network failed {broken[NETWORK_MODEL]:g} times",
            "look at the server's log for the request ids; a restart clears the count",
        )  # fmt: skip
