"""``python -m nima_build.health HOST:PORT``: does the server answer an inference?

Triton's own health endpoints stay green when a Python model has died; this sends a photo. With TLS
on, name the files in the environment, as probes and health checks can::

    NIMA_TLS_CA           PEM authority of the server's certificate; speaks TLS where it is set
    NIMA_TLS_CERT         PEM certificate to show, for mutual TLS
    NIMA_TLS_KEY          its PEM private key
    NIMA_TLS_SERVER_NAME  name in the server's certificate, where it does not name HOST
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping

import nima_client
from nima_build.triton_client import still_works, triton_client
from nima_client._os_errors import in_words

_LOOK_SECONDS = 4.0
"""The photo may wait in the queue for half of its timeout before; Kubernetes allows 10 s in all."""


def tls_from(environment: Mapping[str, str]) -> nima_client.TLS | None:
    """Encryption as the environment says; None speaks plain text.

    Raises:
        ValueError: a certificate without its key, or without an authority.
    """
    authority, cert, key, name = (
        environment.get(f"NIMA_TLS_{part}") or None for part in ("CA", "CERT", "KEY", "SERVER_NAME")
    )
    if authority is None:
        if cert or key:
            raise ValueError("NIMA_TLS_CERT and NIMA_TLS_KEY need NIMA_TLS_CA")
        return None
    return nima_client.TLS(authority, cert, key, name)


def check(url: str, timeout: float = 8.0, tls: nima_client.TLS | None = None) -> str:
    """Score one small photo.

    Returns:
        Empty when the server answered, else the reason in one line.
    """
    from PIL import Image

    photo = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(photo, "JPEG")
    try:
        with nima_client.NimaClient(url, tls=tls, retry=nima_client.NO_RETRIES) as client:
            client.score_one(photo.getvalue(), timeout=timeout)
    except nima_client.OverloadError as error:
        # To restart a busy server, or to take it out of service, would only move the load.
        with triton_client(url, tls) as triton:
            busy = still_works(triton, _LOOK_SECONDS)
        return "" if busy else f"no photo gets through, and the queue says: {error}"
    except (nima_client.NimaError, OSError) as error:
        return " ".join(in_words(error).split())
    return ""


def main(arguments: list[str]) -> int:
    """Exit status for a health check: 0 alive, 1 not."""
    if len(arguments) != 1:
        print("usage: python -m nima_build.health HOST:PORT", file=sys.stderr)
        return 2
    try:
        reason = check(arguments[0], tls=tls_from(os.environ))
    except ValueError as error:
        print(f"nima health: {error}", file=sys.stderr)
        return 2
    if reason:
        print(f"not healthy: {reason}", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
