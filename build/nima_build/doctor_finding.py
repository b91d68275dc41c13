"""What `nima doctor` examines, and what it says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nima_client

Status = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        status: ``ok``, ``warning`` (works, but), ``failure``, or ``skipped`` (could not be told).
        detail: what was found, in one line.
        advice: what to do; empty when all is well.
    """

    check: str
    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Target:
    """What to examine.

    Attributes:
        url: gRPC address of the server.
        http_url: its HTTP address, for the clock and the closed APIs; None leaves that out.
        metrics_url: its Prometheus address; None leaves the queue out.
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


def one_line(error: BaseException) -> str:
    """An error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
