"""Which server a command talks to: the one named, the one that runs here, or one for this run."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from nima_client import _defaults
from nima_client._client import NimaClient
from nima_client._connection import TLS
from nima_client._os_errors import in_words
from nima_client._retry import NO_RETRIES
from nima_client.errors import ContractError, NimaError
from nima_client.library.run import PATIENT

# By name, so that the client has no import of the package that holds the server.
_EMBEDDED = ("nima_build.server", "EmbeddedServer")
_LOOK_S = 1.0
_CONNECT_S = 3.0
"""A person waits at the other end: shorter than the library's own limit."""


class NoServer(NimaError):
    """No server answers, and none can be started here; the message says what to do."""


@contextmanager
def connected_client(
    url: str | None,
    console: Console,
    *,
    tls: TLS | None = None,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[NimaClient]:
    """A client of a server that speaks the contract.

    Args:
        url: the server; None takes ``$NIMA_URL``, else one on 127.0.0.1:8001, else starts the
            embedded server and stops it at the end.
        console: where to say what is going on (standard error).
        tls: certificates for the server named.
        headers: sent to it with every call.
        options: for :class:`~nima_client.NimaClient`.

    Raises:
        ValueError: certificates or headers, but no server named that could want them.
        NoServer: none answers, and none can be started here.
        NimaError: the server named does not answer, or is not NIMA.
    """
    options.setdefault("retry", PATIENT)
    options.setdefault("connect_timeout", _CONNECT_S)
    named = url or os.environ.get(_defaults.URL_VARIABLE)
    if named:
        with NimaClient(named, tls=tls, headers=headers, **options) as client:
            client.model_info()
            yield client
        return
    if tls is not None or headers:
        raise ValueError(
            "--tls-ca, --tls-cert and --header are for a server that is named: "
            f"pass --url host:port, or set ${_defaults.URL_VARIABLE}"
        )
    if _answers(_defaults.URL, console):
        with NimaClient(_defaults.URL, **options) as client:
            yield client
        return
    with _embedded(console) as address, NimaClient(address, **options) as client:
        client.model_info()
        yield client


def _answers(url: str, console: Console) -> bool:
    """Whether a NIMA server of our contract listens there already."""
    try:
        with NimaClient(url, connect_timeout=_LOOK_S, retry=NO_RETRIES) as client:
            client.model_info()
    except ContractError as error:
        console.print(f"{url} is passed over: {error.message}", style="yellow", markup=False)
        return False
    except NimaError:
        return False
    return True


@contextmanager
def _embedded(console: Console) -> Iterator[str]:
    module, name = _EMBEDDED
    server = None
    try:
        with console.status("Starting the embedded tritonserver …"):
            try:
                server = getattr(importlib.import_module(module), name)()
                server.start()
            except Exception as error:
                raise NoServer(
                    f"no server at {_defaults.URL} (pass --url host:port), and the embedded one "
                    f"did not start: {in_words(error)}"
                ) from error
        yield server.grpc_url
    finally:
        if server is not None:
            # Nobody else asks it: what it still does is not wanted, and its own end takes seconds.
            server.end_processes(grace=0)
            server.stop()
