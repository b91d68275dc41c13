"""Checks of `nima doctor` from outside the model: the way there, closed APIs, clock, queue."""

from __future__ import annotations

import http.client
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import nima_client
from nima_build.doctor._finding import Finding, Target, one_line, small_photo
from nima_build.server._security import GRPC_ADMIN_HEADER
from nima_client._address import is_local
from nima_client.contract import MODEL_NAME, NETWORK_MODEL, PREPROCESS_MODEL

_CLOCK_SECONDS = 5.0
_METADATA_BYTES = 65536
# HTTP asks of each closed API, and the method that Triton wants for it.
_HTTP_ASKS = {
    "model-repository": ("POST", "v2/repository/index"),
    "shared-memory": ("GET", "v2/systemsharedmemory/status"),
    "trace": ("GET", "v2/trace/setting"),
    "logging": ("GET", "v2/logging"),
}


def reachable(target: Target) -> Finding:
    """A connection to the gRPC port."""
    if target.url.startswith("unix:"):
        return Finding("reachable", "skipped", f"{target.url} is a socket on this machine")
    begin = time.monotonic()
    try:
        with socket.create_connection(target.place(), timeout=target.timeout):
            pass
    except (OSError, ValueError) as error:
        return Finding(
            "reachable", "failure", f"{target.url}: {one_line(error)}",
            "start the server (`nima serve`), or check the address, the firewall and the port: "
            "gRPC is 8001 unless told otherwise",
        )  # fmt: skip
    return Finding("reachable", "ok", f"{target.url} in {1e3 * (time.monotonic() - begin):.1f} ms")


def closed_apis(target: Target) -> Finding:
    """Whoever may reach the server must not be able to load models or map memory."""
    headers = {k: v for k, v in target.headers if k.lower() != GRPC_ADMIN_HEADER}
    still_open: list[str] = []
    with target.triton() as client:
        for name, call in _grpc_asks(client, headers).items():
            if not _refused(call):
                still_open.append(name)
    untold = ""
    if target.http_url is not None:
        try:
            still_open += [f"{name} (HTTP)" for name in _open_over_http(target)]
        except OSError as error:
            untold = f"http {target.http_url}: {one_line(error)}"
    if still_open:
        found = f"open to everybody: {', '.join(still_open)}"
        return Finding(
            "closed APIs", "warning", "; ".join(filter(None, [found, untold])),
            "restrict them with --grpc-restricted-protocol and --http-restricted-api (SECURITY.md)",
        )  # fmt: skip
    if untold:
        return Finding(
            "closed APIs", "warning", untold,
            "check --http-url; a server with TLS has no HTTP endpoint",
        )  # fmt: skip
    over = "gRPC and HTTP" if target.http_url else "gRPC"
    closed = f"closed without the admin token ({over}): {', '.join(_HTTP_ASKS)}"
    return Finding("closed APIs", "ok", closed)


def _grpc_asks(client: Any, headers: dict[str, str]) -> dict[str, Callable[[], object]]:
    return {
        "model-repository": lambda: client.get_model_repository_index(headers=headers),
        "shared-memory": lambda: client.get_system_shared_memory_status(headers=headers),
        "trace": lambda: client.get_trace_settings(headers=headers),
        "logging": lambda: client.get_log_settings(headers=headers),
    }


def _refused(call: Callable[[], object]) -> bool:
    from tritonclient.utils import InferenceServerException

    try:
        call()
    except InferenceServerException as error:
        return "restricted" in str(error)
    return False


def _open(ask: str | urllib.request.Request, address: str, timeout: float) -> Any:
    """``urlopen``, which asks a proxy even for this machine's own loopback.

    Raises:
        OSError: nothing there answers HTTP, or not with success.
    """
    handlers = [urllib.request.ProxyHandler({})] if is_local(address) else []
    try:
        return urllib.request.build_opener(*handlers).open(ask, timeout=timeout)
    except urllib.error.URLError as error:
        if isinstance(error, urllib.error.HTTPError) or not isinstance(error.reason, OSError):
            raise
        raise error.reason from None  # its own text is that of a program
    except http.client.BadStatusLine:  # it holds what came instead, the bytes of gRPC say
        raise OSError("what listens there does not answer HTTP") from None
    except (http.client.HTTPException, UnicodeError) as error:  # the latter: of a host's name
        raise OSError(str(error)) from None


def _open_over_http(target: Target) -> Iterator[str]:
    try:
        # Whatever else listens there (the metrics port, say) refuses nothing, and opens nothing.
        with _open(f"http://{target.http_url}/v2", str(target.http_url), target.timeout) as answer:
            if b'"extensions"' not in answer.read(_METADATA_BYTES):
                raise OSError("not Triton's HTTP endpoint")
    except urllib.error.HTTPError as error:
        if b"restricted" not in error.read():
            raise OSError(f"not Triton's HTTP endpoint ({error})") from error
    for name, (method, path) in _HTTP_ASKS.items():
        ask = urllib.request.Request(
            f"http://{target.http_url}/{path}",
            data=b"{}" if method == "POST" else None,
            method=method,
        )
        try:
            with _open(ask, str(target.http_url), target.timeout):
                yield name
        except urllib.error.HTTPError as error:
            if b"restricted" not in error.read():
                yield name


def clock(target: Target, client: nima_client.NimaClient) -> Finding:
    """The server's wall clock: its statistics hold the time of the latest inference.

    One is asked for between two looks at the clock here; what lies outside them is a difference of
    the clocks. Triton says its time nowhere else (its HTTP answers have no ``Date``).
    """
    advice = "set both by NTP: certificates, traces and logs go by it (deadlines do not)"
    try:
        earlier = _last_inference(target)
        before = time.time()
        client.score_one(small_photo())
        said = _last_inference(target)
        after = time.time()
    except Exception as error:
        return Finding("clock", "skipped", one_line(error))
    if said == 0:
        return Finding("clock", "skipped", "the server's statistics hold no time")
    if said == earlier:
        # Triton keeps the latest time, which an inference moves unless the clock went back.
        detail = f"the server's clock was set back: its statistics are {said - after:.0f} s ahead"
        return Finding("clock", "warning", detail, advice)
    ahead = max(0.0, said - after) or min(0.0, said - before)
    if abs(ahead) > _CLOCK_SECONDS:
        which = "ahead of" if ahead > 0 else "behind"
        detail = f"the server's clock is {abs(ahead):.0f} s {which} this one"
        return Finding("clock", "warning", detail, advice)
    within = max(abs(ahead), after - before)
    return Finding("clock", "ok", f"the server's clock is this one's, to {within:.2f} s or better")


def _last_inference(target: Target) -> float:
    """Seconds since the epoch, by the server's clock; 0 before its first inference."""
    with target.triton() as triton:
        statistics = triton.get_inference_statistics(headers=dict(target.headers))
    return max((model.last_inference for model in statistics.model_stats), default=0) / 1000


def queue(metrics_url: str, timeout: float) -> Iterator[Finding]:
    """What waits, and what failed, by Triton's own counters."""
    try:
        with _open(f"http://{metrics_url}/metrics", metrics_url, timeout) as answer:
            text = answer.read().decode()
        if f'model="{MODEL_NAME}"' not in text:
            # Any other exporter: that its counters are not there says nothing of the queue.
            raise ValueError(f"there are no metrics of the model {MODEL_NAME}")
    except (OSError, ValueError) as error:
        yield Finding(
            "metrics", "warning", f"{metrics_url}: {one_line(error)}",
            "alerts and the autoscaler need it: check --metrics-url and the network policy",
        )  # fmt: skip
        return

    def total(metric: str, model: str, **labels: str) -> float:
        rows = re.findall(rf'^{metric}\{{(.*model="{model}".*)\}} ([\d.e+]+)$', text, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(v) for found, v in rows if all(w in found for w in wanted))

    waiting = total("nv_inference_pending_request_count", PREPROCESS_MODEL)
    late = total("nv_inference_request_failure", PREPROCESS_MODEL, reason="REJECTED")
    done = total("nv_inference_request_success", MODEL_NAME)
    detail = f"{waiting:g} requests wait; since the start {done:g} answered, {late:g} timed out"
    yield Finding("queue", "ok", detail)
    # A refused image is a success of the preprocessing by Triton's count.
    failed = {
        model: total("nv_inference_request_failure", model, reason="BACKEND")
        for model in (PREPROCESS_MODEL, NETWORK_MODEL)
    }
    if any(failed.values()):
        listed = ", ".join(f"{model} {count:g} times" for model, count in failed.items() if count)
        yield Finding(
            "failures", "warning", f"failed: {listed}",
            "look at the server's log for the request ids; a restart clears the count",
        )  # fmt: skip
