"""ONNX Runtime (1.32 does on Linux) reports to its maker unless told not to: here it is told.

Where it would, it first makes a file for the session in the temporary folder and one for what it
has to send in the user's cache.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nima_build.repository import ONNX_NAME, default_repository
from nima_client.contract import NETWORK_MODEL

SERVE = ["serve", "--instances=1", "--grpc-port=0", "--http-port=0", "--metrics-port=0"]
OPT_OUT = "ORT_DISABLE_TELEMETRY"
NEEDED = ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user who has asked for nothing, with folders that are empty.

    Only what Python needs is handed on: ONNX Runtime keeps silent by itself where a variable of a
    CI service is set (``CI``, ``JENKINS_URL``, ...), which would hide what these tests look for.
    """
    values = {name: os.environ[name] for name in NEEDED if name in os.environ}
    for name in ("HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        values[name] = str(tmp_path / name)
    return values


def files(environment: dict[str, str]) -> list[Path]:
    folders = [Path(environment[name]) for name in ("HOME", "TMPDIR")]
    return [path for folder in folders for path in folder.rglob("*")]


def run_session(environment: dict[str, str], prefix: Sequence[str] = ()) -> None:
    graph = default_repository() / NETWORK_MODEL / "1" / ONNX_NAME
    command = [*prefix, sys.executable, "-c", SESSION, graph]
    subprocess.run(command, env=environment, check=True, timeout=60)


SESSION = """
import sys, pathlib
from nima_build.onnx_session import cpu_session
cpu_session(pathlib.Path(sys.argv[1]))
"""


def test_a_session_of_the_build_reports_nothing(environment: dict[str, str]) -> None:
    run_session(environment)
    assert files(environment) == []


def test_who_wants_to_report_may(environment: dict[str, str], loopback_only: list[str]) -> None:
    """And this shows that the other tests would see it; nothing leaves this machine."""
    run_session({**environment, OPT_OUT: "0"}, loopback_only)
    (package,) = importlib.util.find_spec("onnxruntime").submodule_search_locations
    libraries = Path(package, "capi").glob("onnxruntime_pybind11_state*.so")
    reports = any(OPT_OUT.encode() in library.read_bytes() for library in libraries)
    assert bool(files(environment)) is reports


def test_a_server_reports_nothing(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nima_client.cli.main", *SERVE],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline().startswith("grpc")
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert files(environment) == []
