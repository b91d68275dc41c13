"""How to reach a server: address, encryption, credentials, keepalive."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nima_client import _defaults

Compression = Literal["gzip", "deflate"]


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
    """

    target: str
    tls: TLS | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    keepalive_s: float | None = _defaults.KEEPALIVE_TIME_S
    compression: Compression | None = None

    @functools.cached_property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers as gRPC metadata; keys are lower case there."""
        return tuple((key.lower(), value) for key, value in self.headers.items())

    def channel_options(self) -> list[tuple[str, int | str]]:
        """GRPC channel arguments. Given any, gRPC's and tritonclient's own no longer apply, so that
        message sizes are among them.
        """
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", _defaults.MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _defaults.MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", _defaults.RECONNECT_INITIAL_MS),
            ("grpc.min_reconnect_backoff_ms", _defaults.RECONNECT_INITIAL_MS),
            ("grpc.max_reconnect_backoff_ms", _defaults.RECONNECT_MAX_MS),
            # One retry policy is enough, and ours knows what may be retried.
            ("grpc.enable_retries", 0),
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ]
        if self.keepalive_s is not None:
            options += [
                ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", int(_defaults.KEEPALIVE_TIMEOUT_S * 1000)),
                ("grpc.keepalive_permit_without_calls", 0),
            ]
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options


def normalise_url(url: str) -> tuple[str, bool]:
    """A gRPC target, and whether the scheme asks for TLS.

    Args:
        url: ``host:port``, ``grpc://host:port``, ``grpcs://host:port`` or a gRPC target such as
            ``dns:///name:port`` or ``ipv4:10.0.0.1:8001,10.0.0.2:8001``.

    Raises:
        ValueError: an HTTP address, a path, or no port; says what is expected.
    """
    if "://" in url and not url.startswith(("dns://", "unix://", "xds://")):
        scheme, _, target = url.partition("://")
        if scheme in ("http", "https"):
            raise ValueError(
                f"{url!r} is an HTTP address: the client speaks gRPC, on Triton's port 8001; "
                "pass host:port, or grpcs://host:port for TLS"
            )
        if scheme not in ("grpc", "grpcs"):
            raise ValueError(f"unknown scheme {scheme!r} in {url!r}: use grpc:// or grpcs://")
        target = target.rstrip("/")
    else:
        scheme, target = "", url
    if not target or ("/" in target and ":///" not in url and not target.startswith("unix:")):
        raise ValueError(f"{url!r} is not an address: pass host:port, e.g. {_defaults.URL}")
    if not target.startswith("unix:") and ":" not in target.rpartition("]")[2].removeprefix("dns"):
        raise ValueError(f"{url!r} has no port: Triton's gRPC port is 8001 unless told otherwise")
    return target, scheme == "grpcs"
