"""``nima serve`` as an operator meets it: what it prints, what it refuses, what it leaves."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nima_build.repository import default_repository
from nima_build.server import EmbeddedServer, Probe, ServerOptions
from nima_build.server._ports import free_ports
from nima_build.server._private import PrivateFolder, clear_leftovers

SERVE = [sys.executable, "-m", "nima_client.cli.main", "serve"]
FREE = ["--grpc-port=0", "--http-port=0", "--metrics-port=0", "--instances=1"]


@pytest.fixture
def serve() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``nima serve``; whatever still runs at the end is ended by its pid."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*SERVE, *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def endpoints(process: subprocess.Popen[str], count: int = 3) -> dict[str, str]:
    """What it prints once an inference has answered."""
    return dict(process.stdout.readline().split() for _ in range(count))


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_endpoints_and_stops_cleanly(serve, number, encode, infer):
    http = [] if number == signal.SIGINT else ["--no-http"]
    process = serve(*FREE, *http)
    expected = ["grpc", "metrics"] if http else ["grpc", "http", "metrics"]
    printed = endpoints(process, len(expected))
    assert list(printed) == expected
    assert infer(printed["grpc"], [encode()])["MEAN"].shape == (1, 1)
    children = family(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopping" in said
    assert alive(children) == []
    assert not Probe(printed["grpc"], timeout=1)().alive


def test_a_second_ctrl_c_waits_for_no_requests(serve):
    process = serve(*FREE)
    endpoints(process)
    children = family(process)
    # What does not end by itself would be waited for for 15 s.
    os.kill(next(c.pid for c in children if c.name() == "tritonserver"), signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    line = ""
    while "requests in flight finish first" not in line:
        line = process.stderr.readline()
        assert line, "it ended"
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 10:
        process.send_signal(signal.SIGINT)  # those of the first second are the same wish
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    _, said = process.communicate(timeout=30)
    # The latter where one more came while Python itself ended; to a shell they are the same.
    assert process.returncode in (128 + signal.SIGINT, -signal.SIGINT)
    assert said == "nima serve: stopped at once: requests in flight were cut off\n"
    assert alive(children) == []


def test_it_stops_while_it_restarts_the_server(serve):
    process = serve(*FREE)
    endpoints(process)
    children = family(process)
    os.kill(next(c.pid for c in children if c.name() == "tritonserver"), signal.SIGKILL)
    line = ""
    while "restarting" not in line:
        line = process.stderr.readline()
        assert line, "it ended"
    time.sleep(0.3)
    children += family(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    # Between two starts it stops as always, within one it says that it was interrupted.
    assert process.returncode in (0, 128 + signal.SIGTERM)
    assert alive(children) == []


@pytest.fixture
def plain_tmp() -> Iterator[Path]:
    """A folder that may stand for the temporary one, wherever TMPDIR, and so tmp_path, is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_killed_supervisor_leaves_nothing_to_the_next(serve, plain_tmp):
    """SIGKILL of `nima serve` while its tritonserver is stopped: the worst case of an orphan."""
    # Any other server that starts on this machine would clear it too, and first.
    private = {"TMPDIR": str(plain_tmp)}
    ports = free_ports("127.0.0.1", 3)
    names = ("grpc", "http", "metrics")
    fixed = [f"--{name}-port={port}" for name, port in zip(names, ports)]
    first = serve(*fixed, "--instances=1", **private)
    printed = endpoints(first)
    orphans = family(first)
    (orphan,) = (p for p in orphans if p.name() == "tritonserver")
    command = orphan.cmdline()
    folder = Path(next(a for a in command if "--model-repository" in a).partition("=")[2]).parent
    prefix = next(a for a in command if "shm-region-prefix-name" in a).rpartition("=")[2]
    orphan.suspend()
    first.kill()
    first.wait()
    assert folder.is_dir()
    assert folder.is_relative_to(plain_tmp)
    assert glob.glob(f"/dev/shm/{prefix}*")

    second = serve(*fixed, "--instances=1", **private)
    assert endpoints(second) == printed
    assert alive(orphans) == []
    assert not folder.exists()
    assert not glob.glob(f"/dev/shm/{prefix}*")
    second.terminate()
    _, said = second.communicate(timeout=60)
    assert f"removed {folder}" in said


def test_only_what_nobody_owns_is_cleared(triton, encode, infer, monkeypatch, plain_tmp):
    """A second server on this machine, and the clearing itself, leave the first one alone."""
    with EmbeddedServer(ServerOptions(instances=1)) as second:
        assert second.grpc_url != triton.grpc_url
        second.end_processes(grace=0)
    clear_leftovers()
    assert triton.log_path.is_file()
    assert triton.defect() is None
    assert infer(triton.grpc_url, [encode()])["MEAN"].shape == (1, 1)

    monkeypatch.setattr(tempfile, "tempdir", str(plain_tmp))
    kept = PrivateFolder()
    strange = plain_tmp / "nima-serve-of-another-kind"
    strange.mkdir()
    outside = plain_tmp / "outside"
    shutil.copytree(kept.path, outside)
    (plain_tmp / "nima-serve-link").symlink_to(outside)
    left = plain_tmp / "nima-serve-left"
    shutil.copytree(kept.path, left)
    assert clear_leftovers() == [left]
    assert kept.path.is_dir()
    assert strange.is_dir()
    assert outside.is_dir()
    kept.remove()


def damaged(folder: Path) -> Path:
    """A repository one of whose files is not what its manifest names."""
    copy = folder / "damaged"
    shutil.copytree(default_repository(), copy)
    with (copy / "nima_network" / "1" / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0" * 8)
    return copy


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--model-repository={empty}"], 1, "nima export"),
        (["--model-repository={empty}/nowhere"], 1, "nima export"),
        (["--model-repository={empty}/file"], 2, "is a file"),
        (["--model-repository={damaged}"], 1, "SHA256SUMS names: it is damaged"),
        (["--grpc-port={taken}"], 1, "choose another port"),
        (["--grpc-port=70000"], 2, "65535"),
        (["--grpc-port=8005", "--http-port=8005"], 1, "three different ports"),
        (["--host=192.0.2.1"], 1, "an address of this machine"),
        (["--host=::1"], 1, "IPv4"),
        (["--log-file={empty}/file/triton.log"], 1, "cannot write the log"),
        (["--tls-cert={empty}/server.pem"], 2, "go together"),
        (["--admin-token=a,b"], 1, "8 characters or more"),
        (["--colour=blue"], 2, "No such option"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_it_says_in_one_line_what_is_wrong(triton, tmp_path, arguments, status, said):
    (tmp_path / "file").touch()
    names = {
        "empty": tmp_path,
        "damaged": damaged(tmp_path) if "{damaged}" in arguments[0] else "",
        "taken": triton.grpc_url.rpartition(":")[2],
    }
    given = [argument.format(**names) for argument in arguments]
    free = [a for a in FREE if a.partition("=")[0] not in {g.partition("=")[0] for g in given}]
    run = subprocess.run([*SERVE, *free, *given], capture_output=True, text=True, timeout=60)
    assert run.returncode == status, run.stderr
    assert said in " ".join(run.stderr.replace("│", " ").split())
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert Probe(triton.grpc_url)().alive
