"""The gate between the steps: who waits, for whom, and how long at most."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nima_build.rendering import WAITING_AN_INSTANCE
from nima_client import _gate
from nima_client._gate import Gate, create_gate, open_gate
from nima_client._transport import InferRequest
from nima_client._wire import encode_request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_gate(tmp_path / "gate")
    return tmp_path / "gate"


def waits(gate: Gate, seconds: float) -> bool:
    """Whether ``gate.wait()`` is still waiting after a while; it is let go of in the background."""
    thread = threading.Thread(target=gate.wait, daemon=True)
    thread.start()
    thread.join(seconds)
    return thread.is_alive()


def test_first_step_waits_while_the_limit_is_between_the_steps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gate, "_STILL_SECONDS", 30.0)
    decoders, network = [Gate(path, 2), Gate(path, 2)], Gate(path, 2)
    with network.taken(0):  # it is alive
        pass
    decoders[0].wait()
    decoders[0].passed(1)
    assert not waits(decoders[1], 5), "one is below the limit"
    decoders[1].passed(1)
    assert decoders[0].between() == 2
    waiting = threading.Thread(target=decoders[0].wait, daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    with network.taken(1):
        waiting.join(5)
        assert not waiting.is_alive(), "begun is no longer between"
    assert network.between() == 1


def test_who_has_waited_longest_is_woken_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gate, "_LISTEN_SECONDS", 60.0)  # woken, or not at all
    first, second, network = Gate(path, 2), Gate(path, 2), Gate(path, 2)
    first.passed(2)
    threads = []
    for decoder in (second, first):
        threads.append(threading.Thread(target=decoder.wait, daemon=True))
        threads[-1].start()
        deadline = time.monotonic() + 10
        while sum(1 for since in decoder._all(_gate._WAITING) if since) < len(threads):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    for number, thread in enumerate(threads):
        with network.taken(1):
            thread.join(10)
            assert not thread.is_alive()
            assert all(other.is_alive() for other in threads[number + 1 :])
            second.passed(1)


def test_without_sockets_they_look_by_themselves(path: Path) -> None:
    path = path.rename(path.parent / ("long" * 30))
    decoder, network = Gate(path, 1), Gate(path, 1)
    decoder.passed(1)
    assert waits(decoder, 0.1)
    with network.taken(1):
        assert not waits(decoder, 5)


def test_counts_are_shared_between_processes(path: Path) -> None:
    gate = Gate(path, 1)
    code = (
        "import sys; from nima_client._gate import Gate; gate = Gate(sys.argv[1], 1)\n"
        "gate.passed(5)\nwith gate.taken(2): pass"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
    assert gate.between() == 3


def test_requests_lost_between_the_steps_do_not_close_it_for_ever(path: Path) -> None:
    decoder, network = Gate(path, 2), Gate(path, 2)
    with network.taken(0):
        pass
    decoder.passed(7)  # their callers hung up: the network never sees them
    begin = time.monotonic()
    decoder.wait()
    assert 0.2 < time.monotonic() - begin < 5
    assert decoder.between() == 0


def test_lost_below_the_limit_do_not_narrow_it_for_ever(path: Path) -> None:
    decoder = Gate(path, 2)
    decoder.passed(1)
    time.sleep(0.3)
    decoder.wait()
    assert decoder.between() == 0


def test_a_slow_network_is_not_taken_for_an_idle_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gate, "_STILL_SECONDS", 1.0)
    decoder, network = Gate(path, 1), Gate(path, 1)
    with network.taken(0):
        decoder.passed(1)
        assert waits(decoder, 1.5), "it is at work, however long that takes"
        decoder.passed(1)
    assert waits(decoder, 0.1), "and has been until just now"


def test_a_network_killed_at_its_work_does_not_close_it_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gate, "_LONGEST_WORK_SECONDS", 0.3)
    decoder, killed = Gate(path, 1), Gate(path, 1).taken(0)
    killed.__enter__()
    decoder.passed(1)
    assert not waits(decoder, 5)


def test_a_burst_after_a_quiet_time_is_not_taken_for_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gate, "_STILL_SECONDS", 1.0)
    decoder, network = Gate(path, 2), Gate(path, 2)
    with network.taken(0):
        pass
    time.sleep(1.2)
    decoder.passed(2)  # before the network has woken up
    assert waits(decoder, 0.1)
    assert network.between() == 2


def test_after_a_stall_of_the_whole_machine_the_network_has_time_to_go_on(path: Path) -> None:
    decoder, network = Gate(path, 2), Gate(path, 2)
    decoder.passed(2)
    time.sleep(0.4)  # nobody runs

    def go_on() -> None:
        with network.taken(1):
            pass

    threading.Timer(0.005, go_on).start()
    decoder.wait()
    assert decoder.between() == 1


def test_written_off_but_begun_after_all_does_not_widen_it(path: Path) -> None:
    decoder, network = Gate(path, 2), Gate(path, 2)
    decoder.passed(2)
    decoder.wait()
    assert network.between() == 0
    with network.taken(1):
        assert network.between() == 1


def test_nor_under_a_load_that_never_ceases(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stood still, more passed meanwhile, and decoders are quicker ever after."""
    monkeypatch.setattr(_gate, "_PROMPT_SECONDS", 0.01)
    decoder, network, waiting = Gate(path, 2), Gate(path, 2), 2
    decoder.passed(2)
    for _ in range(2):  # written off twice
        decoder.wait()
        decoder.passed(2)
        waiting += 2
    time.sleep(0.02)
    for _ in range(20):
        while network.between() < 2:
            decoder.passed(1)
            waiting += 1
        with network.taken(1):
            waiting -= 1
    assert network.between() == waiting <= 2


def test_lost_ones_are_not_counted_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gate, "_PROMPT_SECONDS", 30.0)
    decoder, network = Gate(path, 2), Gate(path, 2)
    decoder.passed(2)  # their callers hung up
    decoder.wait()
    time.sleep(0.05)  # it decodes
    for _ in range(2):
        decoder.passed(1)
        with network.taken(1):
            assert network.between() == 0


def test_a_count_below_nothing_starts_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given up comes at the very moment at which what passed since might."""
    monkeypatch.setattr(_gate, "_PROMPT_SECONDS", 30.0)
    decoder, network = Gate(path, 2), Gate(path, 2)
    decoder.passed(2)
    decoder.wait()
    decoder.passed(1)
    with network.taken(3):
        assert network.between() == -2
    decoder.wait()
    assert decoder.between() == 0


def test_no_gate_stops_nobody() -> None:
    gate = open_gate({})
    gate.passed(10**6)
    gate.wait()
    with gate.taken(1):
        pass


def test_places_of_ended_processes_are_taken_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gate, "_WORDS", _gate._FIRST + 3 * 3)
    kept = [Gate(path, 5), Gate(path, 5)]
    kept[0].passed(1)
    code = "import sys; from nima_client._gate import Gate; Gate(sys.argv[1], 5).passed(1)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
    kept.append(Gate(path, 5))
    assert kept[0].between() == 2, "what the ended one let through is still on its way"
    kept[2].passed(1)
    assert kept[0].between() == 3
    with pytest.raises(ValueError, match="no room"):
        Gate(path, 5)


def test_processes_that_open_it_at_once_get_places_of_their_own(path: Path) -> None:
    code = (
        "import sys; from nima_client._gate import Gate; gate = Gate(sys.argv[1], 1)\n"
        "for _ in range(20000): gate.passed(1)\n"
        "sys.stdout.write('done'); sys.stdout.flush(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.read(4) == b"done"
    assert Gate(path, 1).between() == 4 * 20000
    for process in processes:
        process.communicate(timeout=30)


def test_the_config_names_file_and_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gate, "_STILL_SECONDS", 5.0)
    gate = open_gate({"gate": str(path), "gate_limit": "2"})
    gate.passed(1)
    gate.wait()
    gate.passed(1)
    assert waits(gate, 0.1)


def worked_on(metrics_url: str) -> tuple[int, int]:
    """Images that decoder and network have finished."""
    with urllib.request.urlopen(f"http://{metrics_url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = dict(re.findall(r'nv_inference_count\{model="(\w+)",[^}]*\} (\d+)', text))
    return int(found["nima_preprocess"]), int(found["nima_network"])


def test_decoder_does_not_run_ahead_of_the_network(encode) -> None:
    pytest.importorskip("pytriton", reason="needs the extra serve")
    from nima_build.server import EmbeddedServer, ServerOptions

    instances, ahead = 2, []
    photo = encode(seed=3, size=(64, 64))  # decoded in no time, so that it could
    message = service_pb2.ModelInferRequest.FromString(
        encode_request(InferRequest((photo,), request_id="", queue_timeout_s=30.0))
    )
    with (
        EmbeddedServer(ServerOptions(instances=instances)) as server,
        grpc.insecure_channel(server.grpc_url) as channel,
    ):
        begin = worked_on(server.metrics_url)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(message, timeout=60.0) for _ in range(250)]
        while not all(call.done() for call in calls):
            decoded, scored = worked_on(server.metrics_url)
            ahead.append((decoded - begin[0]) - (scored - begin[1]))
            time.sleep(0.01)
        assert all(call.exception() is None for call in calls)
    # Waiting for the network, in it, and decoded by those that saw room at the same moment.
    assert max(ahead) <= (WAITING_AN_INSTANCE + 3) * instances
    assert len(ahead) > 10
