"""A model's process that stood still gives no answer, and one that is only busy does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from nima_client import _stall
from nima_client._stall import StallWatch, _Moment, _still

# Works on one request a line: its first word for so many seconds, by the code of the rest.
MODEL = """
import sys, time
from nima_client import _stall
_stall.AFTERMATH_SECONDS = 0.3
watch = _stall.StallWatch("nima_network")
print("ready", flush=True)
for line in sys.stdin:
    with watch.work():
        print("at work", flush=True)
        exec(line)
    print("answer", flush=True)
"""


class Model:
    def __init__(self) -> None:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen([sys.executable, "-c", MODEL], text=True, **pipes)
        assert self.reads() == "ready"

    def reads(self) -> str:
        return self.process.stdout.readline().strip()

    def send(self, code: str) -> None:
        self.process.stdin.write(f"{code}\n")
        self.process.stdin.flush()

    def stand_still(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> tuple[int, str, str]:
        out, said = self.process.communicate(timeout=30)
        return self.process.returncode, out, said


@pytest.fixture
def model():
    model = Model()
    yield model
    if model.process.poll() is None:
        model.process.kill()
        model.process.communicate()


def test_stopped_at_its_work_it_does_not_answer(model: Model) -> None:
    model.send("time.sleep(0.3)")
    assert model.reads() == "at work"
    model.stand_still(1.0)
    status, out, said = model.end()
    assert (status, out) == (1, "")
    assert "nima_network stood still" in said


def test_a_request_that_came_while_it_was_stopped_is_not_answered(model: Model) -> None:
    model.process.send_signal(signal.SIGSTOP)
    model.send("pass")
    time.sleep(1.0)
    model.process.send_signal(signal.SIGCONT)
    status, out, _ = model.end()
    assert (status, out) == (1, "")


def test_one_that_stood_still_before_the_request_answers(model: Model) -> None:
    model.stand_still(1.0)
    time.sleep(1.0)
    model.send("pass")
    assert [model.reads(), model.reads()] == ["at work", "answer"]


def test_long_work_is_no_standstill_whoever_holds_the_lock(model: Model) -> None:
    begin = time.monotonic()
    model.send("sum(range(400_000_000))")  # no other thread of Python runs meanwhile
    assert [model.reads(), model.reads()] == ["at work", "answer"]
    took = time.monotonic() - begin
    assert took > 2 * _stall._LIMIT_SECONDS, f"too quick to say anything ({took:.2f} s)"
    model.send("time.sleep(1.5)")  # as at the gate
    assert [model.reads(), model.reads()] == ["at work", "answer"]


def test_waiting_for_a_core_now_and_then_is_none_and_for_a_second_is() -> None:
    begin = _Moment(0.0, 0.0, 0)
    assert not _still(begin, _Moment(4.0, 3.2, 50))  # for the lock, on a machine with much work
    assert _still(begin, _Moment(1.2, 1.1, 2))
    assert _still(begin, _Moment(1.5, 0.0, 60))  # 0.3 s for the lock, and stopped then


def test_without_the_kernels_count_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StallWatch, "_now", lambda _: None)
    watch = StallWatch("nima_network")
    with watch.work():
        time.sleep(0.3)
    assert watch._last is None
