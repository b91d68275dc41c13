"""Servers and clients of the reliability tests. Each server is a process group of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Siblings that are not tests (_bombs, _corpus, fuzz, _proxy) are imported by name.
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The model repository under test: the bundled one, or ``$NIMA_TEST_REPOSITORY``."""
    from nima_build.repository import default_repository

    return Path(os.environ.get("NIMA_TEST_REPOSITORY") or default_repository())


@pytest.fixture
def start_server(repository: Path) -> Iterator[Callable[..., object]]:
    """Start real tritonservers for one test: ``start_server(**ServerOptions fields)``."""
    from nima_build.server import EmbeddedServer, ServerOptions

    with ExitStack() as stack:

        def start(**options: object) -> EmbeddedServer:
            given = {"model_repository": repository, "instances": 1, **options}
            server = stack.enter_context(EmbeddedServer(ServerOptions(**given)))
            # A clean end takes seconds, and has tests of its own.
            stack.callback(server.end_processes, grace=0)
            return server

        yield start


@pytest.fixture(scope="module")
def shared_server(repository: Path) -> Iterator[object]:
    """One real tritonserver for the tests of a module that do it no harm."""
    from nima_build.server import EmbeddedServer, ServerOptions

    with EmbeddedServer(ServerOptions(model_repository=repository, instances=2)) as server:
        yield server
        server.end_processes(grace=0)
