"""What goes wrong between client and server: each cause has its error, and retries mend some."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from kserve_server import KServeServer

from nima_client import (
    NO_RETRIES,
    AuthenticationError,
    ConnectError,
    ContractError,
    DeadlineExceeded,
    ImageFailure,
    ModelError,
    QueueFull,
    QueueTimeout,
    RequestCancelled,
    RequestError,
    RetryPolicy,
    ScoringError,
    ServerStopping,
    Stage,
    TLSError,
)
from nima_client._status import status_error
from nima_client.testing import FakeTransport, fake_distribution, reply

Make = Callable[..., Any]
Code = grpc.StatusCode
QUICK = RetryPolicy(attempts=4, budget_s=5.0, initial_backoff_s=0.01, max_backoff_s=0.05)

# The texts are those that tritonserver 2.51 and gRPC 1.85 send.
STATUSES = [
    (Code.UNAVAILABLE, "in ensemble 'nima', Exceeds maximum queue size", QueueFull, True),
    (Code.UNAVAILABLE, "in ensemble 'nima', Request timeout expired", QueueTimeout, True),
    (
        Code.UNAVAILABLE,
        "This protocol is restricted, expecting header 'triton-grpc-protocol-admin'",
        AuthenticationError,
        False,
    ),
    (
        Code.UNAVAILABLE,
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
        ServerStopping,
        True,
    ),
    (
        Code.UNAVAILABLE,
        "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:1: "
        "Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: WRONG_VERSION_NUMBER",
        TLSError,
        False,
    ),
    (
        Code.UNAVAILABLE,
        "connections to all backends failing; last error: UNAVAILABLE: ipv4:127.0.0.1:1: "
        "Handshake read failed (Endpoint closing)",
        ConnectError,
        True,
    ),
    (Code.UNAVAILABLE, "ipv4:127.0.0.1:1: tcp handshaker shutdown", ConnectError, True),
    (Code.UNAVAILABLE, "Failed to connect to remote host: Connection refused", ConnectError, True),
    (Code.UNAVAILABLE, "Socket closed", ConnectError, True),
    (
        Code.UNAVAILABLE,
        "errors resolving h:8001: [field:hostname lookup error: Domain name not found]",
        ConnectError,
        True,
    ),
    (Code.UNAVAILABLE, "DNS resolution failed for nowhere:8001", ConnectError, True),
    (
        Code.NOT_FOUND,
        "Request for unknown model: 'nima' has no available versions",
        ServerStopping,
        True,
    ),
    (Code.CANCELLED, "Cancelled on the server side", ServerStopping, True),
    (Code.NOT_FOUND, "Request for unknown model: 'nima' is not found", ContractError, False),
    (Code.UNAUTHENTICATED, "who are you", AuthenticationError, False),
    (Code.PERMISSION_DENIED, "not you", AuthenticationError, False),
    (Code.INTERNAL, "Stub process 'nima_preprocess_0' is not healthy.", ModelError, True),
    (Code.UNKNOWN, "something", ModelError, True),
    (Code.UNKNOWN, "Received http2 header with status: 413", ModelError, False),
    (Code.INVALID_ARGUMENT, "unexpected shape for input 'IMAGE'", ModelError, False),
    (Code.UNIMPLEMENTED, "Method not found!", ContractError, False),
    (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded, False),
]


@pytest.mark.parametrize(("code", "text", "kind", "retryable"), STATUSES)
def test_each_status_has_its_exception(
    caller: Make, server: KServeServer, photo: Make, code: Any, text: str, kind: Any, retryable: Any
) -> None:
    server.behaviour = lambda number, images, context: context.abort(code, text)
    client = caller(server.url, retry=NO_RETRIES)
    with pytest.raises(kind) as caught:
        client.score_one(photo(0))
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert text in caught.value.message
    assert caught.value.request_id == server.request_ids[0]
    assert len(server.batches) == 1

    server.behaviour = lambda number, images, context: (
        context.abort(code, text) if number < 4 else None
    )
    client = caller(server.url, retry=QUICK)
    if retryable:
        assert client.score_one(photo(0)).mean > 0
        assert len(server.batches) == 4
        # Each attempt has its own id, so that both logs can tell them apart.
        assert len(set(server.request_ids)) == 4
    else:
        with pytest.raises(kind):
            client.score_one(photo(0))
        assert len(server.batches) == 2


def test_a_server_of_another_protocol_is_told(caller: Make, photo: Make) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            client = caller(f"127.0.0.1:{http.server_port}", retry=NO_RETRIES)
            with pytest.raises(ConnectError, match=r"HTTP port \(8000\).* TLS"):
                client.score_one(photo(0))
        finally:
            http.shutdown()


def test_nobody_listens(caller: Make, photo: Make) -> None:
    client = caller("127.0.0.1:1", retry=NO_RETRIES)
    with pytest.raises(ConnectError, match="check that it runs"):
        client.score([photo(0)])
    start = time.monotonic()
    client = caller("127.0.0.1:1", connect_timeout=0.5)
    with pytest.raises(ConnectError):
        client.score_one(photo(0))
    assert time.monotonic() - start < 3.0


def test_a_server_that_starts_late_is_waited_for(caller: Make, photo: Make) -> None:
    with KServeServer() as first:
        port = first.port
    late: list[KServeServer] = []
    timer = threading.Timer(0.5, lambda: late.append(KServeServer(port=port)))
    timer.start()
    try:
        assert caller(f"127.0.0.1:{port}").score_one(photo(0)).mean > 0
    finally:
        timer.join()
        for server in late:
            server.stop()


def test_a_restart_in_the_middle_loses_nothing(caller: Make, photo: Make) -> None:
    images = [photo(i) for i in range(60)]
    running = [KServeServer()]
    port = running[0].port
    started = threading.Event()

    def slow(number: int, images: list[bytes], context: Any) -> None:
        time.sleep(0.01)
        if number == 10:
            started.set()

    running[0].behaviour = slow

    def restart() -> None:
        started.wait(10)
        running[0].stop(0)
        time.sleep(0.3)
        running.append(KServeServer(port=port))

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        scores = caller(f"127.0.0.1:{port}", max_in_flight=4).score(images)
    finally:
        thread.join()
        for server in running:
            server.stop()
    assert [score.index for score in scores] == list(range(60))
    assert len(running) == 2


def test_a_drain_lets_requests_under_way_finish(caller: Make, photo: Make) -> None:
    server = KServeServer()
    stopped: list[threading.Event] = []

    def stop(number: int, images: list[bytes], context: Any) -> None:
        stopped.append(server.server.stop(30))  # begins, and lets this one finish
        time.sleep(0.3)

    server.behaviour = stop
    client = caller(server.url, retry=NO_RETRIES)
    assert client.score_one(photo(0)).mean > 0
    assert stopped[0].wait(40)
    with pytest.raises(RequestError) as caught:
        client.score_one(photo(0))
    assert caught.value.stage is Stage.TRANSPORT


def test_a_server_that_goes_away_for_good_leaves_the_good_scores(caller: Make, photo: Make) -> None:
    server = KServeServer()
    server.behaviour = lambda number, images, context: (
        stop_under_way(server, context) if number == 8 else None
    )
    policy = RetryPolicy(attempts=50, budget_s=0.4, initial_backoff_s=0.02, max_backoff_s=0.1)
    client = caller(server.url, retry=policy, max_in_flight=2)
    with pytest.raises(ScoringError) as caught:
        client.score([photo(i) for i in range(30)])
    assert len(caught.value.scores) >= 6
    assert len(caught.value.scores) + len(caught.value.failures) == 30
    assert caught.value.stages == {Stage.TRANSPORT}
    # The word of the server that ends, or nobody there: whichever came last.
    assert isinstance(caught.value.__cause__, (ConnectError, ServerStopping))


def test_a_stream_whose_server_is_gone_ends_with_the_reason(caller: Make, photo: Make) -> None:
    server = KServeServer()
    client = caller(server.url, retry=NO_RETRIES, max_in_flight=1)
    reached: list[Any] = []

    def collect() -> None:
        for result in client.score_iter((photo(0) for _ in range(10**9)), on_error="return"):
            reached.append(result)
            if len(reached) == 5:
                server.stop()

    # The server says that it ends, or is gone already.
    with pytest.raises((ConnectError, ServerStopping)) as caught:
        collect()
    assert caught.value.stage is Stage.TRANSPORT
    assert len(reached) <= 8
    assert not any(isinstance(result, ImageFailure) for result in reached[:5])


# -- deadlines and cancellation ------------------------------------------------------------------


def test_the_deadline_of_a_call_reaches_the_server(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    server.delay = 60.0
    client = caller(server.url)
    client.model_info()
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.score_one(photo(0), timeout=1.0)
    assert time.monotonic() - start < 10.0
    # Half of it may pass in the queue: what is handed out later ends too late.
    assert 0 < server.timeouts_us[0] <= 500_000
    wait_until(lambda: server.cancelled == 1)


def test_a_deadline_keeps_what_was_reached(caller: Make, server: KServeServer, photo: Make) -> None:
    server.behaviour = lambda number, images, context: (
        server._sleep(60.0, context) if number > 3 else None
    )
    client = caller(server.url, max_in_flight=1, timeout=2.0)
    client.model_info()
    with pytest.raises(ScoringError) as caught:
        client.score([photo(i) for i in range(10)])
    assert sorted(caught.value.scores) == [0, 1, 2]
    assert {failure.code for failure in caught.value.failures} == {"DEADLINE"}
    assert [failure.index for failure in caught.value.failures] == list(range(3, 10))


def test_a_request_has_its_own_limit(caller: Make, server: KServeServer, photo: Make) -> None:
    server.behaviour = lambda number, images, context: (
        server._sleep(60.0, context) if number == 1 else None
    )
    client = caller(server.url, request_timeout=2.0, max_in_flight=2)
    results = client.score([photo(i) for i in range(5)], on_error="return")
    failed = [r for r in results if isinstance(r, ImageFailure)]
    assert [r.code for r in failed] == ["DEADLINE"]


def test_leaving_a_stream_cancels_what_is_under_way(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    # The first answer comes when the window is full.
    server.behaviour = lambda number, images, context: server._sleep(
        20.0 if number > 1 else 0.5, context
    )
    client = caller(server.url, max_in_flight=4)
    stream = client.score_iter((photo(0) for _ in range(10**9)), ordered=False)
    assert next(stream).mean > 0
    wait_until(lambda: server.active >= 2)
    stream.close()
    wait_until(lambda: server.active == 0)
    assert server.cancelled >= 2


def test_a_closed_client_says_so(caller: Make, server: KServeServer, photo: Make) -> None:
    client = caller(server.url)
    client.score_one(photo(0))
    client.close()
    with pytest.raises(RequestCancelled, match="closed"):
        client.score_one(photo(0))


# -- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 8])
def test_never_more_under_way_than_allowed(
    caller: Make, server: KServeServer, photo: Make, window: int
) -> None:
    full = threading.Barrier(window)

    def together(number: int, images: list[bytes], context: Any) -> None:
        if number <= window:
            full.wait(30)
        time.sleep(0.02)

    server.behaviour = together
    caller(server.url, max_in_flight=window).score([photo(i) for i in range(40)])
    assert server.peak == window


@pytest.mark.parametrize(("size", "requests"), [(1, 10), (4, 3), (100, 1)])
def test_images_share_requests(
    caller: Make, server: KServeServer, photo: Make, size: int, requests: int
) -> None:
    images = [photo(i) for i in range(10)]
    scores = caller(server.url, request_size=size).score(images)
    assert len(server.batches) == requests
    assert sorted(image for batch in server.batches for image in batch) == sorted(images)
    assert [score.index for score in scores] == list(range(10))


def test_an_overloaded_server_is_not_hammered(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    def limited(number: int, images: list[bytes], context: Any) -> None:
        if server.active > 2:
            context.abort(Code.UNAVAILABLE, "Exceeds maximum queue size")
        time.sleep(0.005)

    server.behaviour = limited
    policy = RetryPolicy(attempts=100, initial_backoff_s=0.01)
    scores = caller(server.url, retry=policy, max_in_flight=16).score(
        [photo(i) for i in range(100)]
    )
    assert len(scores) == 100
    assert len(server.batches) < 1500


def test_unknown_statuses_become_model_errors() -> None:
    error = status_error("SOMETHING_NEW", "text\nin two lines", "id")
    assert isinstance(error, ModelError)
    assert "text in two lines" in str(error)
    assert str(error).endswith("[request id]")


def stop_under_way(server: KServeServer, context: Any) -> None:
    """Stop the server, which cancels the request that it is stopped in."""
    threading.Thread(target=server.stop).start()
    server._sleep(60.0, context)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_score_that_is_no_number_fails_for_its_image_alone(
    caller: Make, photo: Make, broken: float
) -> None:
    def handler(request: Any) -> Any:
        given = [
            (broken, *rest) if image == photo(2) else (first, *rest)
            for image in request.images
            for first, *rest in [fake_distribution(image)]
        ]
        return reply(request, given)

    fake = FakeTransport(handler)
    client = caller(transport=fake, request_size=4)
    results = client.score([photo(i) for i in range(8)], on_error="return")
    assert [r.index for r in results if isinstance(r, ImageFailure)] == [2]
    assert (results[2].code, results[2].message) == (
        "MODEL",
        "the server gave a score that is not a number: its network or its engine is broken",
    )
    # The other three of its request, and it, once more each.
    assert len(fake.requests) == 2 + 4


def test_a_photo_too_large_for_a_message_fails_alone(caller: Make, photo: Make) -> None:
    photos = [photo(i) + bytes(50_000 if i == 5 else 0) for i in range(40)]
    with KServeServer(most_bytes=20_000) as server:
        client = caller(server.url, request_size=4, max_in_flight=2)
        results = client.score(photos, on_error="return")
    (failure,) = (r for r in results if isinstance(r, ImageFailure))
    assert (failure.index, failure.code) == (5, "MODEL")
    assert "too large" in failure.message


def test_photos_that_are_too_large_together_for_a_proxy_go_alone(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    def proxy(number: int, images: list[bytes], context: Any) -> None:
        if len(images) > 1:
            context.abort(Code.UNKNOWN, "Received http2 header with status: 413")

    server.behaviour = proxy
    scores = caller(server.url, request_size=4).score([photo(i) for i in range(4)])
    assert [score.index for score in scores] == [0, 1, 2, 3]
    assert len(server.batches) == 1 + 4
