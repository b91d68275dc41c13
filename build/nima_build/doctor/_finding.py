"""What `nima doctor` examines, and what it says of it."""

from __future__ import annotations

import dataclasses
import io
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nima_client
from nima_build.triton_client import triton_client
from nima_client._address import normalise_url
from nima_client._os_errors import in_words

_LISTS = ("ipv4:", "ipv6:")  # gRPC's schemes for addresses that need no name server
Status = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        status: ``ok``, ``warning`` (works, but), ``failure``, or ``skipped`` (could not be told).
        detail: what was found, in one line.
        advice: what to do; empty when all is well.
        server: the server it was found at; empty where there is only one.
    """

    check: str
    status: Status
    detail: str
    advice: str = ""
    server: str = ""


@dataclass(frozen=True)
class Target:
    """What to examine.

    Attributes:
        url: gRPC address, as :class:`nima_client.NimaClient` takes it.
        http_url: HTTP address, for the APIs that must be closed there too; None leaves that out.
        metrics_url: Prometheus address; None leaves the queue out.
        model_repository: the files that the server should be serving; None leaves them out.
        tls: how to reach the server.
        headers: metadata for every call.
        timeout: seconds that any single question may take.
    """

    url: str
    http_url: str | None = None
    metrics_url: str | None = None
    model_repository: Path | None = None
    tls: nima_client.TLS | None = None
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = 10.0

    def client(self) -> nima_client.NimaClient:
        """A client that does not retry, so that what is wrong shows."""
        return nima_client.NimaClient(
            self.url,
            tls=self.tls,
            headers=dict(self.headers),
            retry=nima_client.NO_RETRIES,
            connect_timeout=self.timeout,
            request_timeout=self.timeout,
        )

    def triton(self) -> Any:
        """Triton's own client, for what the SDK does not ask."""
        return triton_client(*self._address())

    def servers(self) -> list[Target]:
        """One target for each server behind the address.

        A name is looked up, as gRPC does it; IPv6 counts where there is no IPv4 address. HTTP and
        metrics are then asked at the same ports of each server.

        Raises:
            OSError: the name is not known.
            ValueError: not an address.
        """
        address, tls = self._address()
        if address.startswith("unix:"):
            return [self]
        name = ""
        if address.startswith(_LISTS):
            found = address[len(_LISTS[0]) :].split(",")
        else:
            name, port = self.place()
            found = _addresses(name, port)
        if len(found) == 1:
            return [self]
        if tls is not None and tls.server_name is None and name:
            tls = dataclasses.replace(tls, server_name=name)
        return [
            dataclasses.replace(
                self,
                url=one,
                tls=tls,
                http_url=_at(one, self.http_url),
                metrics_url=_at(one, self.metrics_url),
            )
            for one in found
        ]

    def place(self) -> tuple[str, int]:
        """Host and port; the first of a list.

        Raises:
            ValueError: no address of that kind.
        """
        address, _ = self._address()
        for scheme in ("dns:", *_LISTS):
            address = address.removeprefix(scheme)
        host, _, port = address.lstrip("/").partition(",")[0].rpartition(":")
        return host.strip("[]"), int(port)

    def _address(self) -> tuple[str, nima_client.TLS | None]:
        address, encrypted = normalise_url(self.url)
        return address, self.tls or (nima_client.TLS() if encrypted else None)


def _addresses(name: str, port: int) -> list[str]:
    rows = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    v4 = sorted({str(row[4][0]) for row in rows if row[0] == socket.AF_INET})
    v6 = sorted({str(row[4][0]) for row in rows if row[0] == socket.AF_INET6})
    return [f"{one}:{port}" for one in v4] or [f"[{one}]:{port}" for one in v6]


def _at(server: str, url: str | None) -> str | None:
    return url and f"{server.rpartition(':')[0]}:{url.rpartition(':')[2]}"


def small_photo() -> bytes:
    """A grey ramp of 256 x 256 pixels as JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def one_line(error: BaseException) -> str:
    """An error as one line of at most 300 characters; a cut one ends in three dots."""
    text = " ".join(in_words(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
