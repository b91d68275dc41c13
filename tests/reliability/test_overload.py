"""More work than the server can do: refused at the door with the reason, dropped before it costs.

Goodput at twice the capacity is a measurement, not a test: ``benchmarks/overload.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _bombs
import grpc
import psutil
import pytest
from _corpus import seeds
from _load import drive, expected_scores, stubs_of
from _metrics import evaluate, failures, metrics, queries, worked_on
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nima_build import health
from nima_build.rendering import cpu_instances
from nima_build.server import EmbeddedServer
from nima_build.server._probe import ProbeResult
from nima_client import NO_RETRIES, NimaClient, QueueFull, Stage
from nima_client._transport import InferRequest
from nima_client._wire import encode_request
from nima_client.contract import NETWORK_MODEL, PREPROCESS_MODEL

QUEUE = 4
DECODERS = cpu_instances(1)[PREPROCESS_MODEL]
# Images of an occupying request: a third of a second each on a fast core, a second on a slow one.
OCCUPYING = 8


@pytest.fixture
def small_queue(repository: Path, tmp_path: Path) -> Path:
    """The repository with room for four requests in its queue, where they may wait for long."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    config = copy / PREPROCESS_MODEL / "configs" / "embedded.pbtxt"
    text = config.read_text()
    assert "max_queue_size: 256" in text
    text = text.replace("max_queue_size: 256", f"max_queue_size: {QUEUE}")
    limit = "default_timeout_microseconds: "
    assert f"{limit}10000000\n" in text
    config.write_text(text.replace(f"{limit}10000000\n", f"{limit}120000000\n"))
    return copy


def connect(url: str) -> grpc.Channel:
    """A channel that is connected: the deadlines of what is sent first include no handshake."""
    channel = grpc.insecure_channel(url)
    grpc.channel_ready_future(channel).result(30)
    return channel


def flood(
    channel: grpc.Channel, count: int, timeout_s: float, images: tuple[bytes, ...] = ()
) -> list[grpc.Future]:
    """Send ``count`` requests (a small photo, or ``images``) at once, whatever comes back."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = InferRequest(images or (seeds("JPEG")[0],), "", queue_timeout_s=timeout_s)
    message = service_pb2.ModelInferRequest.FromString(encode_request(request))
    return [stub.ModelInfer.future(message, timeout=timeout_s) for _ in range(count)]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def occupy(server: EmbeddedServer, channel: grpc.Channel) -> list[grpc.Future]:
    """Give each decoder of a server with ``instances=1`` seconds of work, and see it begin."""
    decoders = [psutil.Process(pid) for pid in stubs_of(server, PREPROCESS_MODEL)]
    idle = {decoder: decoder.cpu_times().user for decoder in decoders}

    def at_work() -> int:
        return sum(decoder.cpu_times().user - idle[decoder] >= 0.1 for decoder in decoders)

    image = _bombs.png_zeros(9_500, 9_500)
    calls = flood(channel, DECODERS, 200.0, (image,) * OCCUPYING)
    wait_for(lambda: at_work() == DECODERS, "a decoder stays idle")
    return calls


def outcomes(calls: list[grpc.Future]) -> list[tuple[str, str]]:
    """Status and text of each call; ("OK", "") for a score."""
    said = []
    for call in calls:
        error = call.exception()
        said.append(("OK", "") if error is None else (error.code().name, error.details()))
    return said


@pytest.fixture
def flooded(start_server: Callable[..., object], small_queue: Path) -> Iterator[EmbeddedServer]:
    """A server whose queue is always full."""
    server = start_server(model_repository=small_queue, instances=1)
    over = threading.Event()

    def keep_full() -> None:
        with connect(server.grpc_url) as channel:
            while not over.is_set():
                for call in flood(channel, 3 * QUEUE, 5.0):
                    call.exception()

    callers = [threading.Thread(target=keep_full) for _ in range(2)]
    for caller in callers:
        caller.start()
    yield server
    over.set()
    for pid in server.stub_pids():
        os.kill(pid, signal.SIGCONT)
    for caller in callers:
        caller.join(60)


def turned_away(server: EmbeddedServer) -> ProbeResult:
    """The first probe that the queue does not let in, or that finds no answer."""
    probe = server.probe(3.0)
    for _ in range(200):
        if (result := probe()).reason:
            return result
    raise AssertionError("the queue let every probe in")


@pytest.mark.parametrize("hung", ["", PREPROCESS_MODEL, NETWORK_MODEL])
def test_a_full_queue_is_alive_while_photos_get_through(flooded: EmbeddedServer, hung: str) -> None:
    """Triton's words are the same whether there is much to do or nobody to do it."""
    if not hung:
        assert turned_away(flooded).alive
        assert health.check(flooded.grpc_url) == ""
        return
    for pid in stubs_of(flooded, hung):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)  # what the decoders had begun goes as far as it can
    result = turned_away(flooded)
    assert not result.alive
    assert result.seconds < 10
    assert health.check(flooded.grpc_url) != ""


def test_a_full_queue_refuses_at_once_and_says_why(
    start_server: Callable[..., object], small_queue: Path
) -> None:
    server = start_server(model_repository=small_queue, instances=1)
    with (
        connect(server.grpc_url) as channel,
        NimaClient(server.grpc_url, retry=NO_RETRIES) as client,
    ):
        client.model_info()
        occupied = occupy(server, channel)
        calls = flood(channel, 40, 200.0)
        # One more may have left the queue for a decoder that has no room yet.
        fewest = 40 - QUEUE - DECODERS - 1
        wait_for(lambda: sum(call.done() for call in calls) >= fewest, "the queue took them all")
        with pytest.raises(QueueFull) as refusal:
            client.score_one(seeds("PNG")[0])
        # Refused before the images that block the queue were done.
        assert not any(call.done() for call in occupied)
        said = outcomes(calls)
        assert outcomes(occupied) == [("OK", "")] * DECODERS
    assert refusal.value.stage is Stage.OVERLOAD
    assert refusal.value.retryable
    refused = [text for status, text in said if status == "UNAVAILABLE"]
    assert len(refused) >= fewest
    assert all("Exceeds maximum queue size" in text for text in refused)
    # What was let in is scored.
    assert [status for status, _ in said].count("OK") == 40 - len(refused) >= QUEUE
    # No step counts who found the queue full; the dashboard has it from the ensemble.
    shown = [queries("Refused for overload")["a second"], queries("without a score")["queue full"]]
    wait_for(
        lambda: [evaluate(q, metrics(server)) for q in shown] == [len(refused) + 1] * 2,
        "the dashboard counts other refusals",
    )
    assert sum(failures(server, PREPROCESS_MODEL).values()) == 0


def test_a_backing_off_client_gets_every_score_through_a_small_queue(
    start_server: Callable[..., object], small_queue: Path
) -> None:
    server = start_server(model_repository=small_queue, instances=1)
    expected = expected_scores(server.grpc_url)
    # Sixteen times what fits: one request may be turned away more often than ten times.
    with NimaClient(server.grpc_url, max_in_flight=64) as client:
        account = drive(client, 300)
    assert account.check(300, expected) == {"scored": 300}


def test_requests_past_their_deadline_cost_no_work(start_server: Callable[..., object]) -> None:
    server = start_server(instances=1)
    before = worked_on(server)
    with connect(server.grpc_url) as channel:
        occupied = occupy(server, channel)
        said = outcomes(flood(channel, 60, 0.5))
        assert not any(call.done() for call in occupied)
        assert {status for status, _ in said} <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
        assert outcomes(occupied) == [("OK", "")] * DECODERS
    with NimaClient(server.grpc_url) as client:
        assert 1 <= client.score_one(seeds("PNG")[0]).mean <= 10
    # That is what the alert looks at.
    wait_for(
        lambda: failures(server, PREPROCESS_MODEL)["REJECTED"] >= 50, "not counted", seconds=10
    )
    # What was scored, and one a decoder that may have been handed on before its time ran out.
    assert worked_on(server) - before <= (OCCUPYING + 1) * DECODERS + 1
