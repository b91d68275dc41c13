"""The options of every command that asks a server: certificates and headers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from nima_client._connection import TLS, check_headers

TlsCa = Annotated[
    Optional[Path],  # noqa: UP045  (typer evaluates it on 3.10)
    typer.Option(
        "--tls-ca",
        exists=True,
        dir_okay=False,
        help="PEM authority of the server's certificate: use TLS.",
    ),
]
TlsCert = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--tls-cert",
        exists=True,
        dir_okay=False,
        help="PEM certificate of this client, for mutual TLS.",
    ),
]
TlsKey = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--tls-key", exists=True, dir_okay=False, help="PEM private key of that certificate."
    ),
]
Header = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--header", help="name=value for every call; may be given again."),
]


def credentials(
    ca: Path | None, cert: Path | None, key: Path | None, header: Sequence[str] | None
) -> tuple[TLS | None, dict[str, str]]:
    """``tls`` and ``headers`` for :class:`~nima_client.NimaClient` out of these options.

    Also keeps gRPC from writing of connections that end or fail into what a command says.

    Raises:
        typer.BadParameter: a header without a name or a value that gRPC could send, or only one of
            certificate and key.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    headers = {}
    for item in header or ():
        name, equals, value = item.partition("=")
        if not equals:
            # Not repeated: it may be a secret.
            raise typer.BadParameter("--header wants name=value")
        headers[name] = value
    try:
        check_headers(headers)
    except ValueError as error:
        raise typer.BadParameter(f"--header wants name=value: {error}") from None
    if (cert is None) != (key is None):
        raise typer.BadParameter("--tls-cert and --tls-key go together")
    return (TLS(ca, cert, key) if ca or cert else None), headers
