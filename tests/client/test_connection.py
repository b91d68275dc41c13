"""Addresses, encryption, credentials, several servers, trace context, processes and threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from kserve_server import KServeServer
from PIL import Image

from nima_client import (
    NO_RETRIES,
    TLS,
    AsyncNimaClient,
    AuthenticationError,
    ConnectError,
    NimaClient,
    RequestCancelled,
    RetryPolicy,
    TLSError,
    TransportError,
)
from nima_client._address import normalise_url
from nima_client._connection import Connection
from nima_client.testing import FakeTransport

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("url", "target", "encrypted"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001", False),
        ("grpc://host:8001", "host:8001", False),
        ("grpcs://host:8001/", "host:8001", True),
        ("[::1]:8001", "[::1]:8001", False),
        ("dns:///scores.internal:8001", "dns:///scores.internal:8001", False),
        ("ipv4:10.0.0.1:8001,10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001", False),
        ("unix:///run/nima.sock", "unix:///run/nima.sock", False),
    ],
)
def test_addresses(url: str, target: str, encrypted: bool) -> None:
    assert normalise_url(url) == (target, encrypted)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://host:8000", "gRPC"),
        ("https://host", "gRPC"),
        ("ftp://host:1", "scheme"),
        ("host", "port"),
        ("host/path:1", "address"),
        ("", "address"),
    ],
)
def test_what_is_no_address_is_refused_with_a_hint(url: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        NimaClient(url)


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIMA_URL", raising=False)
    assert NimaClient().url == "127.0.0.1:8001"
    monkeypatch.setenv("NIMA_URL", "elsewhere:9001")
    assert NimaClient().url == "elsewhere:9001"


def test_nothing_is_opened_before_the_first_call() -> None:
    code = "import sys, nima_client; nima_client.NimaClient('h:1'); print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_message_sizes_and_keepalive_are_always_set() -> None:
    options = dict(Connection("h:1").channel_options())
    assert options["grpc.max_send_message_length"] == 2**31 - 1
    assert options["grpc.max_receive_message_length"] == 4 * 2**20
    assert int(options["grpc.keepalive_time_ms"]) >= 300_000
    assert options["grpc.enable_retries"] == 0
    assert "grpc.keepalive_time_ms" not in dict(
        Connection("h:1", keepalive_s=None).channel_options()
    )


def test_large_images_pass(caller: Make, server: KServeServer) -> None:
    # gRPC's own limit is 4 MiB. A BMP of 6 MB is its size in bytes.
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(buffer, "BMP")
    assert len(buffer.getvalue()) > 5_000_000
    assert caller(server.url).score_one(buffer.getvalue()).mean > 0
    for compression in ("gzip", "deflate"):
        assert caller(server.url, compression=compression).score_one(buffer.getvalue()).mean > 0


def test_headers_travel_with_every_call(caller: Make, server: KServeServer, photo: Make) -> None:
    client = caller(server.url, headers={"X-Api-Key": "k"}, bearer_token="t")
    client.score_one(photo(0))
    assert len(server.metadata) == 2  # metadata at connect, and the inference
    for sent in server.metadata:
        assert sent["x-api-key"] == "k"
        assert sent["authorization"] == "Bearer t"


def test_a_missing_credential_is_told_apart(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    def guarded(number: int, images: list[bytes], context: Any) -> None:
        sent = {k: v for k, v in context.invocation_metadata()}  # noqa: C416
        if sent.get("authorization") != "Bearer good":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

    server.behaviour = guarded
    with pytest.raises(AuthenticationError):
        caller(server.url).score_one(photo(0))
    assert caller(server.url, bearer_token="good").score_one(photo(0)).mean > 0


def test_tls(caller: Make, photo: Make, certificates: dict[str, Any]) -> None:
    files = certificates["files"]
    credentials = grpc.ssl_server_credentials([certificates["pair"]])
    with KServeServer(credentials=credentials) as server:
        trusting = caller(server.url, tls=TLS(ca_file=files["ca"]))
        assert trusting.score_one(photo(0)).mean > 0
        named = caller(server.url, tls=TLS(ca_file=files["ca"], server_name="nima.test"))
        assert named.score_one(photo(0)).mean > 0
        with pytest.raises(TLSError, match="certificates"):
            caller(server.url, tls=TLS(ca_file=files["other"])).score_one(photo(0))
        with pytest.raises(TLSError):
            caller(server.url, tls=TLS(ca_file=files["ca"], server_name="else.test")).score_one(
                photo(0)
            )
        with pytest.raises(TransportError):
            caller(server.url, retry=NO_RETRIES).score_one(photo(0))  # plain text


def test_tls_against_a_plain_server(
    caller: Make, server: KServeServer, photo: Make, certificates: dict[str, Any]
) -> None:
    with pytest.raises(TLSError):
        caller(server.url, tls=TLS(ca_file=certificates["files"]["ca"])).score_one(photo(0))


def test_a_server_that_is_far_away_has_time_for_the_handshake(
    caller: Make, photo: Make, certificates: dict[str, Any]
) -> None:
    def relay(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def connect(near: socket.socket) -> None:
        time.sleep(0.4)
        far = socket.create_connection(("127.0.0.1", server.port))
        threading.Thread(target=relay, args=(far, near), daemon=True).start()
        relay(near, far)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=connect, args=(listener.accept()[0],), daemon=True).start()

    credentials = grpc.ssl_server_credentials([certificates["pair"]])
    tls = TLS(ca_file=certificates["files"]["ca"])
    with (
        KServeServer(credentials=credentials) as server,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        threading.Thread(target=accept, daemon=True).start()
        client = caller(f"127.0.0.1:{listener.getsockname()[1]}", tls=tls, retry=NO_RETRIES)
        assert client.score_one(photo(0)).mean > 0
        listener.shutdown(socket.SHUT_RDWR)


def test_mutual_tls(caller: Make, photo: Make, certificates: dict[str, Any]) -> None:
    files = certificates["files"]
    credentials = grpc.ssl_server_credentials(
        [certificates["pair"]], certificates["root"], require_client_auth=True
    )
    with KServeServer(credentials=credentials) as server:
        tls = TLS(ca_file=files["ca"], cert_file=files["cert"], key_file=files["key"])
        assert caller(server.url, tls=tls).score_one(photo(0)).mean > 0
        with pytest.raises(TransportError):
            caller(server.url, tls=TLS(ca_file=files["ca"]), connect_timeout=1.0).score_one(
                photo(0)
            )
    with pytest.raises(ValueError, match="both"):
        TLS(cert_file="only.pem")


def test_several_servers_take_turns(caller: Make, photo: Make) -> None:
    with KServeServer() as one, KServeServer() as two:
        client = caller(f"ipv4:{one.url},{two.url}")
        client.score([photo(i) for i in range(40)])
        # Connections come up one after the other; from then on the servers take turns.
        client.score([photo(i) for i in range(40)])
        assert len(one.batches) + len(two.batches) == 80
        assert min(len(one.batches), len(two.batches)) >= 20
        one.stop()
        assert len(client.score([photo(i) for i in range(20)])) == 20


def test_trace_context_is_passed_on(caller: Make, server: KServeServer, photo: Make) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    tracer = trace.TracerProvider().get_tracer("test")
    client = caller(server.url)
    client.score_one(photo(0))
    assert "traceparent" not in server.metadata[-1]
    with tracer.start_as_current_span("request") as span:
        client.score_one(photo(0))
    identity = f"{span.get_span_context().trace_id:032x}"
    assert identity in server.metadata[-1]["traceparent"]


def test_what_a_propagator_writes_and_grpc_cannot_send_stays_here(
    caller: Make, server: KServeServer, photo: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    propagate = pytest.importorskip("opentelemetry.propagate")
    written = {"Tenant": "Zoë", "two words": "x", "traceparent": "00-of-a-span"}
    monkeypatch.setattr(propagate, "inject", lambda carrier: carrier.update(written))
    caller(server.url).score_one(photo(0), timeout=20)
    assert server.metadata[-1]["traceparent"] == "00-of-a-span"


def test_one_client_serves_many_threads(server: KServeServer, photo: Make) -> None:
    images = [photo(i) for i in range(8)]
    with NimaClient(server.url) as client:
        expected = [score.mean for score in client.score(images)]

        def work(_: int) -> list[float]:
            return [score.mean for score in client.score(images)]

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert all(means == expected for means in pool.map(work, range(64)))
    assert server.describes == 1


def test_threads_leave_the_filters_of_warnings_alone() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12)).save(buffer, "PNG")
    before = list(warnings.filters)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with (
            NimaClient(transport=FakeTransport(), max_side=12) as client,
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            list(pool.map(lambda _: client.score_one(buffer.getvalue()), range(400)))
    finally:
        sys.setswitchinterval(switch)
    assert warnings.filters == before


@pytest.mark.parametrize("used_before", [False, True])
def test_a_forked_child_may_use_the_client(
    server: KServeServer, photo: Make, used_before: bool
) -> None:
    # A server in this process would not survive the fork of its own threads: it runs in another.
    program = Path(__file__).parent / "support" / "run_server.py"
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        script = Path(__file__).parent / "support" / "fork_client.py"
        environment = {**os.environ, "GRPC_VERBOSITY": "ERROR"}
        try:
            done = subprocess.run(
                [sys.executable, str(script), url, str(int(used_before))],
                capture_output=True, text=True, timeout=60, env=environment, check=False,
            )  # fmt: skip
        finally:
            process.send_signal(signal.SIGTERM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["child", "child", "child", "parent"]


def test_an_async_client_follows_from_one_event_loop_to_the_next(
    server: KServeServer, photo: Make
) -> None:
    client = AsyncNimaClient(server.url)
    for _ in range(2):
        assert asyncio.run(client.score_one(photo(0))).mean > 0

    async def in_two_loops() -> None:
        await client.score_one(photo(0))
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, client.score_one(photo(0)))
        await client.close()

    asyncio.run(in_two_loops())


def test_a_client_can_be_closed_while_others_wait(server: KServeServer, photo: Make) -> None:
    server.delay = 60.0
    client = NimaClient(server.url)
    client.model_info()
    threading.Timer(0.3, client.close).start()
    start = time.monotonic()
    with pytest.raises(TransportError):
        client.score_one(photo(0))
    assert time.monotonic() - start < 10.0


def test_a_client_that_was_closed_unused_stays_closed(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    unused = caller(server.url)
    unused.close()
    with pytest.raises(RequestCancelled, match="closed"):
        unused.score_one(photo(0))
    assert not server.describes
    fake = FakeTransport()
    caller(transport=fake).close()
    assert fake.closed


class Unreachable(FakeTransport):
    """Nobody answers the first question, as often as said; how long each time might have taken."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.timeouts: list[float] = []

    def describe(self, model_name: str, model_version: str, timeout_s: float) -> Any:
        self.timeouts.append(timeout_s)
        if len(self.timeouts) <= self.failures:
            raise ConnectError("nobody there")
        return super().describe(model_name, model_version, timeout_s)


def test_the_retry_budget_limits_retries_and_not_the_first_contact(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    never = RetryPolicy(budget_s=0.0)
    server.describe_delay = 0.2
    assert caller(server.url, retry=never).score_one(photo(0)).mean > 0

    fake = Unreachable(1)
    client = caller(transport=fake, retry=never, connect_timeout=7.0)
    with pytest.raises(ConnectError):
        client.score_one(photo(0))
    client.score_one(photo(0), timeout=3.0)
    first, second = fake.timeouts
    assert 5.0 < first <= 7.0
    assert 1.0 < second <= 3.0

    fake = Unreachable(10**6)
    short = RetryPolicy(attempts=10**6, budget_s=1.0, initial_backoff_s=0.01, max_backoff_s=0.01)
    start = time.monotonic()
    with pytest.raises(ConnectError):
        caller(transport=fake, retry=short).model_info()
    assert 1.0 <= time.monotonic() - start < 5.0
    assert len(fake.timeouts) > 5


def test_no_server_means_no_server() -> None:
    with pytest.raises(ConnectError), NimaClient("127.0.0.1:1", connect_timeout=0.2) as client:
        client.model_info()
