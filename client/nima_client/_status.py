"""From a gRPC status to an exception: the one table.

Triton answers UNAVAILABLE for six different things, and only the text tells them apart. The texts
are those of Triton 2.51 and of gRPC; both are checked in the tests against real servers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from nima_client import errors
from nima_client._transport import RejectedImages
from nima_client.contract import parse_rejections
from nima_client.errors import RequestError

Maker = Callable[..., RequestError]

_NOT_LOADED = r"no available versions|not ready"
_TOO_LARGE = "the message is too large for the server, or for a proxy before it"

_RULES: tuple[tuple[str, str, Maker, str], ...] = (
    # status, pattern in the text (case-insensitive), exception, what to tell the user
    (
        "UNAVAILABLE",
        r"exceeds maximum queue size",
        errors.QueueFull,
        "the server's queue is full",
    ),
    (
        "UNAVAILABLE",
        r"request timeout expired",
        errors.QueueTimeout,
        "the request waited too long in the server's queue",
    ),
    (
        "UNAVAILABLE",
        r"protocol is restricted|api is restricted",
        errors.AuthenticationError,
        "the server restricts this protocol: pass the header it expects with headers={…}",
    ),
    (
        "UNAVAILABLE",
        r"server is stopping|stopping to serve|stopped accepting|shutting down|"
        r"server shutdown|cancelling all calls|graceful_stop|goaway.*(debug data:.*)?shutdown",
        errors.ServerStopping,
        "the server is stopping",
    ),
    # The other side went away, or was too slow, before anything was said of certificates.
    (
        "UNAVAILABLE",
        r"handshake (read|write) failed|handshake timed out|handshaker? shutdown",
        errors.ConnectError,
        "the connection broke off before it was open: check that the server runs, the address, and "
        "that both sides use TLS",
    ),
    (
        "UNAVAILABLE",
        r"\bssl|\btls|certificate|handshake|verification check failed|wrong_version_number",
        errors.TLSError,
        "the TLS handshake failed: check the certificates, and that both sides use TLS",
    ),
    (
        "UNAVAILABLE",
        r"too_many_pings|enhance_your_calm",
        errors.ConnectError,
        "the server closed the connection because of keepalive pings: raise keepalive_s",
    ),
    (
        "UNAVAILABLE",
        r"backends failing.*socket closed|failed parsing http/2|expected settings frame",
        errors.ConnectError,
        "what listens there does not answer gRPC: is this Triton's HTTP port (8000)? gRPC has its "
        "own, 8001 unless told otherwise. Or does the server want TLS, or your certificate?",
    ),
    (
        "UNAVAILABLE",
        r"refused|failed to connect|unreachable|name resolution|dns|no such host|domain name|"
        r"hostname|timed out|"
        r"reset by peer|socket closed|broken pipe|connection|empty address list|goaway|endpoint",
        errors.ConnectError,
        "no server answers at this address: check that it runs, the address, and TLS",
    ),
    # While Triton drains, or loads, its model disappears for a moment.
    ("UNAVAILABLE", _NOT_LOADED, errors.ServerStopping, "the model is not loaded"),
    ("NOT_FOUND", _NOT_LOADED, errors.ServerStopping, "the model is not loaded"),
    (
        "CANCELLED",
        r"locally cancelled|channel closed",
        errors.RequestCancelled,
        "the request was cancelled here",
    ),
    # Nobody here asked for it: a server that stops cancels what it has no time to finish.
    ("CANCELLED", r"", errors.ServerStopping, "the server cancelled the request"),
    ("NOT_FOUND", r"unknown model", errors.ContractError, "this server has no such model"),
    ("INVALID_ARGUMENT", r"unknown model", errors.ContractError, "this server has no such model"),
    # gRPC says so on this side: no answer of the contract is that large.
    (
        "RESOURCE_EXHAUSTED",
        r"client: received message larger than max|decompressed message larger than max",
        errors.ContractError,
        "the server's answer is far larger than one of NIMA can be",
    ),
    # Of this request: the others of its call may be smaller.
    ("RESOURCE_EXHAUSTED", r"larger than max|message", errors.ModelError, _TOO_LARGE),
    # A web server as proxy: nginx takes 1 MiB unless client_max_body_size says otherwise.
    ("UNKNOWN", r"http2 header with status: 413", errors.ModelError, _TOO_LARGE),
)

_BY_STATUS: dict[str, tuple[Maker, str]] = {
    "UNAVAILABLE": (errors.ConnectError, "the server is not available"),
    "DEADLINE_EXCEEDED": (errors.DeadlineExceeded, "the time allowed for the request ran out"),
    "UNAUTHENTICATED": (errors.AuthenticationError, "the server wants credentials"),
    "PERMISSION_DENIED": (errors.AuthenticationError, "the credentials do not allow this"),
    "RESOURCE_EXHAUSTED": (errors.OverloadError, "the server has no resources left"),
    "NOT_FOUND": (errors.ContractError, "this server has no such model"),
    "UNIMPLEMENTED": (
        errors.ContractError,
        "this server does not speak the KServe v2 (Triton) protocol",
    ),
    "INVALID_ARGUMENT": (errors.ModelError, "the server refused the request"),
    "INTERNAL": (errors.ModelError, "the server failed while scoring"),
    "UNKNOWN": (errors.ModelError, "the server failed in a way it does not name"),
    "DATA_LOSS": (errors.ModelError, "the server lost data"),
    "ABORTED": (errors.ModelError, "the server gave the request up"),
}

# A second try would end the same way.
_NEVER_RETRY = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"})

_COMPILED = tuple((s, re.compile(p, re.IGNORECASE), make, say) for s, p, make, say in _RULES)


def status_error(status: str, details: str, request_id: str = "") -> RequestError:
    """The exception for a gRPC status.

    Args:
        status: name of the status code, e.g. ``"UNAVAILABLE"``.
        details: text of the status.
        request_id: id of the request that failed.

    Returns:
        An exception of :mod:`nima_client.errors`, not raised.
    """
    rejections = parse_rejections(details) if status == "INVALID_ARGUMENT" else ()
    if rejections:
        return RejectedImages(rejections, request_id=request_id)
    text = " ".join(details.split())
    for name, pattern, make, say in _COMPILED:
        if name == status and pattern.search(text):
            retryable = False if make is errors.ModelError else None
            return make(f"{say} ({status}: {text})", request_id=request_id, retryable=retryable)
    maker, say = _BY_STATUS.get(status, (errors.ModelError, "the server failed"))
    retryable = False if status in _NEVER_RETRY else None
    return maker(f"{say} ({status}: {text})", request_id=request_id, retryable=retryable)
