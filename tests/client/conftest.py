"""Fixtures of the client's tests: small photos, and a server inside the test process."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

# Test modules are imported by path: what they share lies here.
sys.path.insert(0, str(Path(__file__).parent / "support"))


def make_photo(number: int = 0, size: tuple[int, int] = (16, 12), refuse: bool = False) -> bytes:
    """A small JPEG; every number gives another one."""
    image = Image.new("RGB", size, (number % 256, number // 256 % 256, 77))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, comment=b"REFUSE" if refuse else f"{number}".encode())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """``photo(number, size=(16, 12), refuse=False)``: a small JPEG that the server may refuse."""
    return make_photo


@pytest.fixture
def server() -> Iterator[object]:
    """A well-behaved KServe server on a free loopback port."""
    from kserve_server import KServeServer

    with KServeServer() as running:
        yield running


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in a process of its own, which answers after 2 ms."""
    program = Path(__file__).parent / "support" / "run_server.py"
    with subprocess.Popen(
        [sys.executable, str(program), "0.002"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos in a folder, in one below it and in a hidden one."""
    root = tmp_path / "photos"
    (root / "trip").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for number in (1, 2, 10):
        (root / f"{number}.jpg").write_bytes(make_photo(number))
    (root / "trip" / "A.JPEG").write_bytes(make_photo(20))
    (root / "trip" / "notes.txt").write_text("no photo")
    (root / ".hidden" / "thumb.jpg").write_bytes(make_photo(30))
    return root


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A server's pair and its root (PEM), files of a client, and ``other``: a strange authority."""
    trustme = pytest.importorskip("trustme")
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = trustme.CA(), trustme.CA()
    server = authority.issue_cert("127.0.0.1", "nima.test")
    client = authority.issue_cert("a-client")
    files = {"ca": folder / "ca.pem", "other": folder / "other.pem"}
    authority.cert_pem.write_to_path(files["ca"])
    stranger.cert_pem.write_to_path(files["other"])
    client.private_key_pem.write_to_path(folder / "client.key")
    (folder / "client.pem").write_bytes(b"".join(c.bytes() for c in client.cert_chain_pems))
    files |= {"key": folder / "client.key", "cert": folder / "client.pem"}
    pair = (server.private_key_pem.bytes(), b"".join(c.bytes() for c in server.cert_chain_pems))
    return {"files": files, "pair": pair, "root": authority.cert_pem.bytes()}


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Iterator[Callable[..., object]]:
    """Makes a client, threads or asyncio, behind one blocking interface; closes it at the end."""
    from callers import CALLERS

    made: list[object] = []

    def make(*args: object, **options: object) -> object:
        client = CALLERS[request.param](*args, **options)
        made.append(client)
        return client

    yield make
    for client in made:
        client.end()  # type: ignore[attr-defined]


@pytest.fixture(params=["fake", "inprocess", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """Options that connect a client to the fake, to the server in this process, or to Triton."""
    if request.param == "triton":
        yield {"url": request.getfixturevalue("triton").grpc_url}
    elif request.param == "inprocess":
        yield {"url": request.getfixturevalue("server").url}
    else:
        from refusing import refusing_answer

        from nima_client.testing import FakeTransport

        yield {"transport": FakeTransport(refusing_answer, workers=4)}


@pytest.fixture
def browser() -> Iterator[object]:
    """A headless Chromium."""
    from browser import Browser, chromium

    if chromium() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with Browser() as running:
        yield running
