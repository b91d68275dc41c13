"""The daemon of NVIDIA MPS that a server on a GPU has; a script stands in for the driver's."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nima_build import gpu
from nima_build.server import EmbeddedServer, ServerError, ServerOptions, Supervisor, _mps
from nima_build.server._mps import Mps
from nima_build.server._private import PrivateFolder, clear_leftovers

CONTROL = """#!/bin/bash
dir=${CUDA_MPS_PIPE_DIRECTORY:-/nonexistent}
if [ "$1" = -f ]; then
    echo started >> "$STAND_IN/starts"
    if [ -f "$STAND_IN/refuses" ]; then
        cp "$STAND_IN/refuses" "$CUDA_MPS_LOG_DIRECTORY/control.log"
        exit 1
    fi
    echo $$ > "$dir/control"
    exec sleep 300
fi
[ -f "$dir/control" ] || exit 1
read -r command
case $command in
    get_server_list) cat "$dir/servers" 2> /dev/null || true ;;
    quit) [ -f "$STAND_IN/hangs" ] || kill "$(cat "$dir/control")" ;;
esac
"""
JOINS = """
import os, pathlib
pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"], "servers").write_text("4711\\n")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with the script; files in it say how it behaves."""
    folder = tmp_path / "driver"
    folder.mkdir()
    control = folder / "nvidia-cuda-mps-control"
    control.write_text(CONTROL)
    control.chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_mps, "_JOIN", JOINS)
    return folder


def daemon(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "mps" / "control").read_text()))


def wait_until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_a_server_has_a_daemon_of_its_own_which_ends_with_it(
    stand_in: Path, tmp_path: Path
) -> None:
    mps = Mps(None)
    added = mps.launch(tmp_path)
    assert mps.note == "with NVIDIA MPS"
    assert added == {
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "mps"),
        "CUDA_MPS_LOG_DIRECTORY": str(tmp_path / "mps" / "log"),
    }
    running = daemon(tmp_path)
    assert mps.defect() is None
    mps.end()
    assert not running.is_running()
    mps.end()
    # The next start of the same server has another.
    assert mps.launch(tmp_path) == added
    assert daemon(tmp_path) != running
    mps.end()


def test_the_program_that_joins_runs_no_code_of_the_current_folder(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cuda.py").write_text("raise SystemExit('from here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_mps, "_JOIN", f"try: import cuda\nexcept ImportError: pass\n{JOINS}")
    mps = Mps(None)
    mps.launch(tmp_path)
    mps.end()
    assert mps.note == "with NVIDIA MPS"


def test_a_daemon_that_ended_is_a_defect(stand_in: Path, tmp_path: Path) -> None:
    mps = Mps(None)
    mps.launch(tmp_path)
    daemon(tmp_path).kill()
    assert wait_until(lambda: mps.defect() is not None)
    assert mps.defect() == "the daemon of NVIDIA MPS ended with status -9"
    mps.end()
    assert mps.defect() is None


def test_a_server_of_it_that_is_gone_is_a_defect(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = subprocess.Popen(["sleep", "300"])
    monkeypatch.setattr(_mps, "_JOIN", JOINS.replace("4711", str(server.pid)))
    mps = Mps(None)
    try:
        mps.launch(tmp_path)
        assert mps.defect() is None
        server.kill()
        server.wait()
        assert mps.defect() == f"the server of NVIDIA MPS (process {server.pid}) is gone"
    finally:
        server.kill()
        server.wait()
        mps.end()
    assert mps.defect() is None


def test_a_daemon_that_does_not_quit_is_killed(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand_in / "hangs").touch()
    monkeypatch.setattr(_mps, "_COMMAND_SECONDS", 0.5)
    mps = Mps(None)
    mps.launch(tmp_path)
    running = daemon(tmp_path)
    mps.end()
    assert not running.is_running()


def refusing(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_in / "refuses").write_text("banner\nno device is there\n")


def not_joined(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mps, "_JOIN", "raise SystemExit('CUDA says cudaErrorMpsRpcFailure')")


def passed_over(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mps, "_JOIN", "pass")


def hanging(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mps, "_JOIN", "import time; time.sleep(60)")
    monkeypatch.setattr(_mps, "_JOIN_SECONDS", 0.5)


def missing(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_in / "nvidia-cuda-mps-control").unlink()


@pytest.mark.parametrize(
    ("fault", "reason", "starts"),
    [
        (refusing, "nvidia-cuda-mps-control ended with status 1: no device is there", 1),
        (not_joined, "a CUDA program cannot join it: CUDA says cudaErrorMpsRpcFailure", 1),
        (passed_over, "CUDA programs do not join it", 1),
        (hanging, "a CUDA program did not join it in 0.5 s", 1),
        (missing, "nvidia-cuda-mps-control, which comes with the driver, is not on PATH", 0),
    ],
)
def test_without_mps_the_server_says_why_and_goes_on(
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path, pytest.MonkeyPatch], None],
    reason: str,
    starts: int,
) -> None:
    fault(stand_in, monkeypatch)
    mps = Mps(None)
    assert mps.launch(tmp_path) == {}
    assert mps.note == f"without NVIDIA MPS: {reason}"
    assert mps.defect() is None
    if (control := tmp_path / "mps" / "control").exists():
        assert not psutil.pid_exists(int(control.read_text()))
    # A restart of the server does not try again.
    assert mps.launch(tmp_path) == {}
    log = stand_in / "starts"
    assert (len(log.read_text().splitlines()) if log.exists() else 0) == starts
    with pytest.raises(ServerError, match="NVIDIA MPS cannot be had: ") as refusal:
        Mps(True).launch(tmp_path)
    assert reason in str(refusal.value)


def test_what_worked_once_is_tried_again_at_each_restart(stand_in: Path, tmp_path: Path) -> None:
    mps = Mps(None)
    assert mps.launch(tmp_path)
    mps.end()
    (stand_in / "refuses").write_text("the GPU is not back yet\n")
    assert mps.launch(tmp_path) == {}
    assert mps.note.endswith("the GPU is not back yet")
    (stand_in / "refuses").unlink()
    assert mps.launch(tmp_path)
    assert mps.note == "with NVIDIA MPS"
    mps.end()


def test_a_daemon_that_runs_already_is_used_as_it_is(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "control").write_text("4711")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(elsewhere))
    mps = Mps(None)
    assert mps.launch(tmp_path) == {}
    assert mps.note == "with the NVIDIA MPS that was running"
    mps.end()
    assert not (stand_in / "starts").exists()


def test_switched_off_nothing_is_started(stand_in: Path, tmp_path: Path) -> None:
    assert Mps(False).launch(tmp_path) == {}
    assert not (stand_in / "starts").exists()
    with pytest.raises(ServerError, match="--mps goes with --device cuda"):
        ServerOptions(mps=True)


@pytest.mark.parametrize(
    ("visible", "passed_on"), [("1,0", "GPU-b7c2,GPU-a1f0"), ("MIG-1a2b", None), ("", None)]
)
def test_chosen_gpus_are_named_by_their_uuid(
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    passed_on: str | None,
) -> None:
    smi = stand_in / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho '0, GPU-a1f0, NVIDIA L4, 8.9, 575.57.08, 23034'\n"
        "echo '1, GPU-b7c2, NVIDIA L4, 8.9, 575.57.08, 23034'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    mps = Mps(None)
    added = mps.launch(tmp_path, list(gpu.visible_gpus()))
    mps.end()
    assert added.get("CUDA_VISIBLE_DEVICES") == passed_on
    assert len(gpu.visible_gpus()) == len(gpu.find_gpus())


def test_what_a_killed_owner_left_of_it_is_ended_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = PrivateFolder()
    sleep = shutil.which("sleep")
    assert sleep is not None
    server = Path(shutil.copy(sleep, tmp_path / "nvidia-cuda-mps-server"))
    left, other = (
        subprocess.Popen([server, "300"], env={"CUDA_MPS_PIPE_DIRECTORY": str(pipes)})
        for pipes in (folder.path / "mps", tmp_path / "of-another-server")
    )
    try:
        assert clear_leftovers() == []
        assert psutil.pid_exists(left.pid)
        # As the kernel does when the owner is killed.
        folder._lock.close()
        assert clear_leftovers() == [folder.path]
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_a_real_server_and_its_stubs_join_it_and_a_lost_daemon_restarts_them(
    stand_in: Path,
) -> None:
    server = EmbeddedServer(ServerOptions(instances=1))
    server.mps = Mps(None)
    lines: list[str] = []
    supervisor = Supervisor(server, report=lines.append)
    with server:
        running = daemon(server._folder)
        assert server.pid is not None
        for pid in (server.pid, *server.stub_pids()):
            environment = psutil.Process(pid).environ()
            assert environment["CUDA_MPS_PIPE_DIRECTORY"] == str(server._folder / "mps")
        first = server.pid

        def lose() -> None:
            running.kill()
            wait_until(lambda: supervisor.restarts > 0)
            supervisor.stop()

        thread = threading.Thread(target=lose)
        thread.start()
        supervisor.run()
        thread.join()
        assert supervisor.restarts == 1
        assert "the daemon of NVIDIA MPS ended" in lines[0]
        assert server.pid not in (None, first)
        again = daemon(server._folder)
        assert again.is_running()
    assert not again.is_running()
