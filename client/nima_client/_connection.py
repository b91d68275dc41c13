"""How to reach a server: address, encryption, credentials, keepalive."""

from __future__ import annotations

import functools
import json
import math
import numbers
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from nima_client import _defaults
from nima_client._address import is_local

Compression = Literal["gzip", "deflate"]

_MOST_MS = 2**31 - 1  # gRPC's channel arguments are of 32 bits
_HEADER_NAME = re.compile(r"[0-9A-Za-z_.-]+")


@dataclass(frozen=True)
class TLS:
    """Encryption of the connection.

    Attributes:
        ca_file: PEM file of the authorities to trust; None takes gRPC's own list of public ones.
        cert_file: PEM file of the client's certificate chain, for mutual TLS.
        key_file: PEM file of the client's private key, for mutual TLS.
        server_name: name to expect in the server's certificate, where it differs from the address.
    """

    ca_file: str | os.PathLike[str] | None = None
    cert_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("mutual TLS needs both cert_file and key_file")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Contents of ca_file, key_file and cert_file, as gRPC takes them."""

        def content(path: str | os.PathLike[str] | None) -> bytes | None:
            if path is None:
                return None
            with open(path, "rb") as file:
                return file.read()

        return content(self.ca_file), content(self.key_file), content(self.cert_file)


@dataclass(frozen=True)
class Connection:
    """Everything a gRPC transport needs to know.

    Attributes:
        target: gRPC target: ``host:port``, or ``dns:///name:port`` for several servers behind one
            name, which are then used in turn (round robin).
        tls: encryption; None speaks plain text.
        headers: metadata sent with every call (API keys, restricted-protocol headers).
        keepalive_s: seconds between pings on an idle connection; None sends none. Triton answers
            pings more often than every 300 s with GOAWAY.
        compression: of requests; None for none.

    Raises:
        ValueError: a header that gRPC could not send (its value is not repeated: it may be a
            secret), an unknown compression, or no time between pings.
        TypeError: ``tls`` is no :class:`TLS`.
    """

    target: str
    tls: TLS | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may be secrets
    keepalive_s: float | None = _defaults.KEEPALIVE_TIME_S
    compression: Compression | None = None

    def __post_init__(self) -> None:
        check_headers(self.headers)
        if self.tls is not None and not isinstance(self.tls, TLS):
            raise TypeError(f"tls must be a TLS or None, not {type(self.tls).__name__}")
        if self.compression is not None and self.compression not in get_args(Compression):
            raise ValueError(
                f"compression must be 'gzip', 'deflate' or None, not {self.compression!r}"
            )
        if self.keepalive_s is not None:
            check_seconds("keepalive_s", self.keepalive_s)

    @functools.cached_property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers as gRPC metadata; keys are lower case there, each comes once (the last)."""
        return tuple({key.lower(): value for key, value in self.headers.items()}.items())

    def channel_options(self) -> list[tuple[str, int | str]]:
        """GRPC channel arguments. Given any, gRPC's and tritonclient's own no longer apply, so that
        message sizes are among them.
        """
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", _defaults.MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _defaults.MAX_ANSWER_BYTES),
            ("grpc.initial_reconnect_backoff_ms", _defaults.RECONNECT_INITIAL_MS),
            ("grpc.min_reconnect_backoff_ms", _defaults.CONNECT_ATTEMPT_MS),
            ("grpc.max_reconnect_backoff_ms", _defaults.RECONNECT_MAX_MS),
            # One retry policy is enough, and ours knows what may be retried.
            ("grpc.enable_retries", 0),
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ]
        if is_local(self.target):
            # A proxy cannot reach this machine's own loopback, and has no business with its photos.
            options.append(("grpc.enable_http_proxy", 0))
        if self.keepalive_s is not None:
            options += [
                ("grpc.keepalive_time_ms", min(int(self.keepalive_s * 1000), _MOST_MS)),
                ("grpc.keepalive_timeout_ms", int(_defaults.KEEPALIVE_TIMEOUT_S * 1000)),
                ("grpc.keepalive_permit_without_calls", 0),
            ]
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse headers that gRPC would fail to send, each call anew and as an error of the server.

    Raises:
        ValueError: a name that is none, or a value that is not printable ASCII. Says which header,
            but never what is in it.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ValueError("the name of a header must be of letters, digits and any of _ . -")
        if name.lower().endswith("-bin"):
            raise ValueError(f"header {name!r}: names that end with -bin are for binary values")
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise ValueError(f"the value of header {name!r} must be of printable ASCII characters")


def bearer(token: str) -> str:
    """The value of the header ``authorization`` for a token; blanks around it do not count.

    Raises:
        ValueError: an empty token.
    """
    token = token.strip()
    if not token:
        raise ValueError("bearer_token is empty")
    return f"Bearer {token}"


def check_seconds(name: str, value: object, *, over: bool = False) -> None:
    """Refuse what is no time.

    Args:
        name: of the option.
        value: its value.
        over: whether it may be over, too: 0 or less, what is left of a budget.

    Raises:
        ValueError: not a number above 0 (``over``: or a finite one below), or one of decades.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    low = -math.inf if over else 0.0
    if not number or not low < value <= _defaults.LONGEST_S:  # type: ignore[operator]
        raise ValueError(
            f"{name} must be a number of seconds{'' if over else ' above 0'} "
            f"(at most {_defaults.LONGEST_S:.0e}), not {value!r}"
        )
