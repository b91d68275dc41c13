"""Ctrl-C, SIGTERM and SIGHUP: commands end in order, at any moment, and say so in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nima_client import _signals
from nima_client._files import atomic_file, write_together
from nima_client._signals import Stopped, held_back, stoppable
from nima_client.cli import main as command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_open_is_closed_and_one_line_says_so(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A test run itself may have been started with it ignored, as in the background.
    monkeypatch.setattr(_signals.signal, "getsignal", lambda number: signal.SIG_DFL)
    closed = []

    @stoppable("prog", "all is kept", last=False)
    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # a key pressed twice does not cut this short
            closed.append(1)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            work()
        assert signal.signal(number, before) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert (ended.value.code, closed) == (128 + number, [1])
    assert capsys.readouterr().err == "prog: stopped: all is kept\n"


def test_a_swallowed_signal_can_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_signals, "TWICE_S", 0.0)
    swallowed = []

    @stoppable("prog", last=False)
    def work() -> None:
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGTERM)
            except Stopped as stop:
                swallowed.append(stop.status)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        work()
    assert (ended.value.code, swallowed) == (143, [143, 143])


def test_who_ended_in_spite_of_a_signal_ended_well() -> None:
    with stoppable("prog", last=False), pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable("prog", last=False), held_back():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_fork_ends_by_the_signal_itself() -> None:
    with stoppable("prog", last=False):
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_that_is_still_being_imported(number: str, status: int) -> None:
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from nima_client.cli import main
main.importlib.import_module = lambda name: signal.raise_signal(signal.{number})
sys.argv = ["nima", "train"]
main.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr == f"nima train: stopped: {command.COMMANDS['train'].kept}\n"


def test_an_interrupt_as_a_file_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(old: str, new: str, *, replace=os.replace) -> None:  # type: ignore[no-untyped-def]
        replace(old, new)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(os, "replace", interrupted)
    files = {tmp_path / "weights": b"1", tmp_path / "description": b"2"}
    with pytest.raises(SystemExit) as ended, stoppable("prog", last=False):
        write_together(files)
    assert ended.value.code == 143
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    with (
        pytest.raises(SystemExit),
        stoppable("prog", last=False),
        atomic_file(tmp_path / "weights") as file,
    ):
        file.write("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["description", "weights"]
    assert (tmp_path / "weights").read_text() == "new"
