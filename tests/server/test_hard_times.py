"""What befalls a server that runs for long: a closed terminal, a full disk, a cleaner of /tmp."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nima_build.server import (
    EmbeddedServer,
    Probe,
    RestartPolicy,
    ServerError,
    ServerLost,
    ServerOptions,
    Supervisor,
    _launched,
    _private,
)
from nima_build.server._log import last_errors
from nima_build.server._ports import free_ports, listens
from nima_build.server._private import PrivateFolder, clear_leftovers, require_intact

SERVE = [sys.executable, "-m", "nima_client.cli.main", "serve", "--instances=1"]
FREE = ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
QUICK = RestartPolicy(check_seconds=0.1, probe_seconds=60.0)


@pytest.fixture
def running() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(ServerOptions(instances=1)) as server:
        yield server
        server.end_processes(grace=0)


def tritonserver_of(process: subprocess.Popen[str]) -> int | None:
    children = psutil.Process(process.pid).children()
    running = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return next((child.pid for child in running if child.name() == "tritonserver"), None)


def test_a_closed_terminal_ends_it() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SERVE, *FREE],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, 0x540E, 0),  # TIOCSCTTY
    )  # fmt: skip
    os.close(theirs)
    try:
        assert process.stdout.readline().startswith("grpc")
        os.close(ours)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "stopping (SIGHUP, from the terminal" in said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_it_restarts_though_nobody_reads_what_it_says() -> None:
    process = subprocess.Popen(
        [*SERVE, *FREE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().split()[1]
        while "serving" not in process.stderr.readline():
            pass
        process.stderr.close()
        before = tritonserver_of(process)
        os.kill(before, signal.SIGKILL)
        end = time.monotonic() + 60
        while tritonserver_of(process) in (None, before) or not Probe(url, timeout=5)().alive:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < end
            time.sleep(0.2)
        process.terminate()
        process.stdout.read()
        # The latter where it has not noticed yet that its server answers again.
        assert process.wait(60) in (0, 128 + signal.SIGTERM)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_what_somebody_put_among_its_shared_memory_stops_no_restart(
    running: EmbeddedServer,
) -> None:
    """Everybody may write in /dev/shm, and sees the names there; what is not ours stays."""
    strange = Path(f"/dev/shm/{running.shm_prefix}x")
    strange.mkdir()
    try:
        running.end_processes(grace=0)
        assert list(Path("/dev/shm").glob(f"{running.shm_prefix}*")) == [strange]
        running.launch()
    finally:
        strange.rmdir()


def test_a_report_that_cannot_be_written_stops_no_restart(running: EmbeddedServer) -> None:
    def report(_: str) -> None:
        raise BrokenPipeError

    supervisor = Supervisor(running, QUICK, report=report)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        os.kill(running.pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while supervisor.restarts < 1:
            assert thread.is_alive(), "the supervisor ended"
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        supervisor.stop()
        thread.join(30)


@pytest.mark.parametrize("what", ["create_gate", "Popen"])
def test_a_full_disk_is_waited_out(
    running: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    supervisor = Supervisor(running, QUICK, report=said.append)
    thread = threading.Thread(target=supervisor.run)
    with monkeypatch.context() as patch:
        patch.setattr(_launched if what == "create_gate" else subprocess, what, full)
        thread.start()
        os.kill(running.pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while not any("restart failed" in line and "No space left" in line for line in said):
            assert thread.is_alive(), "the supervisor ended"
            assert time.monotonic() < end
            time.sleep(0.05)
    try:
        while supervisor.restarts < 1:
            assert thread.is_alive(), "the supervisor ended"
            assert time.monotonic() < end + 60
            time.sleep(0.1)
    finally:
        supervisor.stop()
        thread.join(30)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a small tmpfs needs root and unshare",
)
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """Which one it is: that of the private folder, at a restart and at the first start."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = """
import pathlib, sys
from nima_build.server import EmbeddedServer, ServerError, ServerOptions
ballast = pathlib.Path(sys.argv[1], "ballast")
def launched(action):
    with ballast.open("wb", buffering=0) as file:
        try:
            for size in (1 << 16, 1):
                while file.write(bytes(size)) == size: pass
        except OSError: pass
    try:
        action()
    except (ServerError, OSError) as error:
        print("said", error, flush=True)
    ballast.unlink()
with EmbeddedServer(ServerOptions(instances=1)) as server:
    server.end_processes(grace=0)
    launched(server.launch)
launched(EmbeddedServer().start)
"""
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c",
         f'mount -t tmpfs -o size=96m tmpfs {disk} || exit 77; exec "$@"',
         "sh", sys.executable, "-c", program, str(disk)],
        env={**os.environ, "TMPDIR": str(disk)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if ended.returncode == 77:
        pytest.skip("no tmpfs may be mounted here")
    assert ended.returncode == 0, ended.stderr[-600:]
    restart, start = (line for line in ended.stdout.splitlines() if line.startswith("said"))
    assert re.fullmatch(
        rf"said cannot start tritonserver: {disk}/nima-serve-\w+: No space left on device", restart
    )
    assert "No space left on device" in start
    assert str(disk) in start


def test_it_ends_where_its_folder_was_deleted(tmp_path: Path) -> None:
    """So that systemd starts it anew; it leaves no folder that nobody holds."""
    process = subprocess.Popen(
        [*SERVE, *FREE],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline()
        (folder,) = tmp_path.glob("nima-serve-*")
        shutil.rmtree(folder)
        os.kill(tritonserver_of(process), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "was deleted under the running server" in said
        assert "Traceback" not in said
        assert list(tmp_path.glob("nima-serve-*")) == []
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_cleaner_that_takes_files_only_is_noticed_too(running: EmbeddedServer) -> None:
    require_intact(running._folder)
    (running._folder / "models" / "nima_network" / "config.pbtxt").unlink()
    with pytest.raises(ServerLost, match="keep the cleaner of"):
        running.launch()


def test_of_two_on_the_same_ports_at_once_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find the ports free; the second must not take the first one's answers for its own."""
    monkeypatch.setattr(_launched, "require_free", lambda *_: None)
    grpc, http, metrics = free_ports("127.0.0.1", 3)
    options = ServerOptions(grpc_port=grpc, http_port=http, metrics_port=metrics, instances=1)
    with EmbeddedServer(options) as first:
        second = EmbeddedServer(options)
        with pytest.raises(ServerError, match="ended with status 1 while starting"):
            second.start()
        assert first.defect() is None
        assert listens(first.pid, [grpc, http, metrics])
        assert not listens(os.getpid(), [grpc])
        first.end_processes(grace=0)


def test_a_temporary_folder_with_a_space_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a folder", "földer", "a&b"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        private = PrivateFolder()
        assert private.path.parent == Path("/tmp")
        private.remove()
    with EmbeddedServer(ServerOptions(instances=1)) as server:
        assert Probe(server.grpc_url)().alive
        server.end_processes(grace=0)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_removal_leaves_is_found_by_the_next_start(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = PrivateFolder()
    (private.path / "models" / "nima").mkdir(parents=True)
    (private.path / "gate").touch()
    with monkeypatch.context() as patch:
        patch.setattr(_private.shutil, "rmtree", lambda *_, **__: None)
        private.remove()
    assert {entry.name for entry in private.path.iterdir()} == {"models", "owner.lock"}
    assert clear_leftovers() == [private.path]
    assert not private.path.exists()


def test_old_folders_without_a_lock_go_and_no_others(temporary: Path) -> None:
    def make(name: str, *contents: str, seconds_old: float = 7200) -> Path:
        folder = temporary / name
        for content in contents:
            (folder / content).mkdir(parents=True)
        folder.mkdir(exist_ok=True)
        past = time.time() - seconds_old
        os.utime(folder, (past, past))
        return folder

    left = make("nima-serve-abcdefgh", "models", "backends", "gate", "gate.0", ".models.staged")
    empty = make("nima-serve-abcdefgi")
    kept = [
        make("nima-serve-abcdefgj", "models", seconds_old=60),  # may be just being made
        make("nima-serve-abcdefgk", "models", "photos"),
        make("nima-serve-photos", "models"),
    ]
    robbed = PrivateFolder()  # by a cleaner, while its server runs
    (robbed.path / "owner.lock").unlink()
    os.utime(robbed.path, (0, 0))
    assert clear_leftovers() == [left, empty]
    assert all(folder.is_dir() for folder in [*kept, robbed.path])
    robbed.remove()
    assert not robbed.path.exists()


def test_a_folder_that_becomes_a_link_while_it_is_looked_at_leads_nowhere(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "ours"
    (ours / "models").mkdir(parents=True)
    (ours / "owner.lock").touch()
    (temporary / "nima-serve-abcdefgh").symlink_to(ours)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_symlink", lambda _: False)  # as it was a moment before
        assert clear_leftovers() == []
    assert (ours / "models").is_dir()


def test_a_process_that_ends_while_it_is_being_killed_stops_no_start(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended:
        def kill(self) -> None:
            raise psutil.NoSuchProcess(1)

    found = [[Ended()], []]
    monkeypatch.setattr(_private, "_processes_of", lambda _: found.pop(0))
    monkeypatch.setattr(_private, "_GRACE_SECONDS", -1.0)
    monkeypatch.setattr(psutil, "wait_procs", lambda *_, **__: None)
    (temporary / "nima-serve-abcdefgh").mkdir()
    (temporary / "nima-serve-abcdefgh" / "owner.lock").touch()
    assert clear_leftovers() == [temporary / "nima-serve-abcdefgh"]


def test_of_a_log_whose_server_aborted_the_reason_is_told(tmp_path: Path) -> None:
    log = tmp_path / "tritonserver.log"
    log.write_text(
        '2026-01-01T00:00:00Z I 71 model_lifecycle.cc:839] "successfully loaded"\n'
        "terminate called after throwing an instance of 'boost::interprocess::lock_exception'\n"
        "  what():  boost::interprocess::lock_exception\n"
    )
    lines = last_errors(log, 0, 12).splitlines()
    assert [line.split()[0] for line in lines] == ["terminate", "what():"]
