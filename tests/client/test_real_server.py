"""What only a real tritonserver can show: its texts, its queue, its drain, its TLS."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nima_build.server", reason="a real tritonserver needs the extra serve")

from nima_build.server import EmbeddedServer, ServerOptions
from nima_client import (
    NO_RETRIES,
    TLS,
    AuthenticationError,
    ConnectError,
    ContractError,
    DeadlineExceeded,
    ImageFailure,
    NimaClient,
    QueueFull,
    RetryPolicy,
    TLSError,
    TransportError,
)

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def heavy() -> bytes:
    """A photo that takes the server tens of milliseconds."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((1400, 1000)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def slow_to_decode() -> bytes:
    """A small file of 36 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that a test may stop; as slow on many cores as on two."""
    with EmbeddedServer(ServerOptions(instances=2, stop_timeout=5.0)) as server:
        yield server


@pytest.fixture(scope="module")
def narrow() -> Iterator[EmbeddedServer]:
    """A server that can be kept busy, on many cores too."""
    with EmbeddedServer(ServerOptions(instances=2)) as server:
        yield server
        server.end_processes(grace=0)


def test_a_full_queue(narrow: EmbeddedServer, photo: Make) -> None:
    # The queue counts requests: one photo each.
    alone = {"url": narrow.grpc_url, "request_size": 1}
    impatient = NimaClient(**alone, retry=NO_RETRIES, max_in_flight=600)
    with impatient:
        images = [photo(i, size=(320, 240)) for i in range(600)]
        # The decoders are busy for a second first, however slowly the client gets its photos out.
        results = impatient.score([slow_to_decode()] * 15 + images, on_error="return")
    codes = {r.code for r in results if isinstance(r, ImageFailure)}
    # On a machine that is busy with something else the queue's own limit of time may come first.
    assert "QUEUE_FULL" in codes <= {"QUEUE_FULL", "QUEUE_TIMEOUT"}
    failed = next(r for r in results if isinstance(r, ImageFailure) and r.code == "QUEUE_FULL")
    assert isinstance(failed.error, QueueFull)
    assert "Exceeds maximum queue size" in failed.message
    policy = RetryPolicy(attempts=100, budget_s=60.0)
    with NimaClient(**alone, max_in_flight=400, retry=policy) as patient:
        assert len(patient.score(images[:400])) == 400


def test_other_models_of_the_server_are_no_nima(caller: Make, triton: EmbeddedServer) -> None:
    with pytest.raises(ContractError, match="PIXELS"):
        caller(triton.grpc_url, model_name="nima_network").model_info()
    with pytest.raises(ContractError, match="no such model"):
        caller(triton.grpc_url, model_name="resnet50").model_info()


def test_the_http_port_is_told_apart(caller: Make, triton: EmbeddedServer) -> None:
    address = triton.http_url.removeprefix("http://")
    with pytest.raises(ConnectError, match=r"HTTP port \(8000\)"):
        caller(address, retry=NO_RETRIES).model_info()


def test_a_deadline_ends_the_work_on_the_server(
    caller: Make, narrow: EmbeddedServer, photo: Make
) -> None:
    client = caller(narrow.grpc_url, max_in_flight=200, request_size=1)
    client.score_one(photo(0))
    slow = slow_to_decode()
    with pytest.raises(DeadlineExceeded):
        client.score_one(slow, timeout=0.005)
    start = time.monotonic()
    results = client.score([slow] * 200, timeout=0.5, on_error="return")
    assert time.monotonic() - start < 5.0
    codes = {r.code for r in results if isinstance(r, ImageFailure)}
    assert "DEADLINE" in codes
    assert codes <= {"DEADLINE", "QUEUE_TIMEOUT"}
    # What nobody waits for is not in the way of the next call: it would take ten seconds and more.
    start = time.monotonic()
    client.score_one(photo(1))
    assert time.monotonic() - start < 5.0


def test_a_drain_and_a_stopped_server(caller: Make, own: EmbeddedServer, heavy: bytes) -> None:
    client = caller(own.grpc_url, retry=NO_RETRIES, max_in_flight=8)
    client.model_info()
    results: list[Any] = []
    stopper = threading.Thread(target=own.stop)

    def collect() -> None:
        for result in client.score_iter([heavy] * 500, on_error="return", ordered=False):
            results.append(result)
            if len(results) == 10:
                stopper.start()

    with pytest.raises(TransportError):
        collect()
    stopper.join()
    failed = [r for r in results if isinstance(r, ImageFailure)]
    assert 10 <= len(results) - len(failed) < 500
    assert {r.code for r in failed} <= {"STOPPING", "UNREACHABLE"}
    with pytest.raises(ConnectError):
        caller(own.grpc_url, connect_timeout=0.5).model_info()


def test_a_restart_loses_no_photo(caller: Make, own: EmbeddedServer, photo: Make) -> None:
    port = int(own.grpc_url.rpartition(":")[2])
    client = caller(own.grpc_url, retry=RetryPolicy(attempts=50), max_in_flight=4)
    images = [photo(i, size=(320, 240)) for i in range(60)]
    before = [score.mean for score in client.score(images)]
    again: list[EmbeddedServer] = []

    def restart() -> None:
        own.stop()
        again.append(EmbeddedServer(ServerOptions(grpc_port=port, instances=2)))
        again[0].start()
        done.wait(60)  # the kernel ends the server with the thread that started it

    done = threading.Event()
    thread = threading.Thread(target=restart)
    scores = []
    try:
        for score in client.score_iter(images * 3):
            scores.append(score)
            if len(scores) == 20:
                thread.start()
    finally:
        done.set()
        thread.join()
        for server in again:
            server.stop()
    assert [score.mean for score in scores] == pytest.approx(before * 3, abs=1e-5)
    assert len(again) == 1


def test_a_restricted_protocol(caller: Make, photo: Make) -> None:
    options = ServerOptions(
        extra_arguments=("--grpc-restricted-protocol=model-config:nima-test=secret",)
    )
    with EmbeddedServer(options) as server:
        with pytest.raises(AuthenticationError, match="headers="):
            caller(server.grpc_url).score_one(photo(0))
        headers = {"triton-grpc-protocol-nima-test": "secret"}
        assert caller(server.grpc_url, headers=headers).score_one(photo(0)).mean > 1.0


def test_mutual_tls(caller: Make, photo: Make, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    from nima_build.server._security import ServerTLS

    authority = trustme.CA()
    files = {name: tmp_path / name for name in ("ca", "key", "cert")}
    authority.cert_pem.write_to_path(files["ca"])
    own = authority.issue_cert("127.0.0.1", "localhost")
    own.private_key_pem.write_to_path(files["key"])
    files["cert"].write_bytes(b"".join(c.bytes() for c in own.cert_chain_pems))
    tls = ServerTLS(files["cert"], files["key"], files["ca"], mutual=True)
    with EmbeddedServer(ServerOptions(tls=tls)) as server:
        mutual = TLS(ca_file=files["ca"], cert_file=files["cert"], key_file=files["key"])
        assert caller(server.grpc_url, tls=mutual).score_one(photo(0)).mean > 1.0
        with pytest.raises(TransportError):  # no certificate shown
            caller(server.grpc_url, tls=TLS(ca_file=files["ca"]), connect_timeout=0.5).score_one(
                photo(0)
            )
        stranger = tmp_path / "stranger"
        trustme.CA().cert_pem.write_to_path(stranger)
        with pytest.raises(TLSError):
            caller(server.grpc_url, tls=TLS(ca_file=stranger)).score_one(photo(0))
