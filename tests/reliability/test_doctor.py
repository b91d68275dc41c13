"""``nima doctor`` finds what is wrong with a real server, and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import trustme

from nima_build.doctor import examine
from nima_build.doctor_finding import Finding, Target
from nima_build.repository import default_repository
from nima_build.server import ServerTLS
from nima_client import TLS
from nima_client.contract import NETWORK_MODEL

DOCTOR = [sys.executable, "-m", "nima_client.cli.main", "doctor"]


def found(target: Target) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(target)}


def test_a_sound_deployment(shared_server) -> None:
    ended = subprocess.run(
        [*DOCTOR, "--url", shared_server.grpc_url, "--http-url", shared_server.http_url,
         "--metrics-url", shared_server.metrics_url, "--json",
         "--model-repository", str(default_repository())],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    rows = {row["check"]: row for row in map(json.loads, ended.stdout.splitlines())}
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for check in ("artefacts", "reachable", "contract", "scoring", "manifest", "golden score",
                  "latency", "closed APIs", "queue"):  # fmt: skip
        assert rows[check]["status"] == "ok", rows[check]
        assert rows[check]["advice"] == ""
    assert "largest difference" in rows["golden score"]["detail"]
    text = subprocess.run(
        [*DOCTOR, "--url", shared_server.grpc_url], capture_output=True, text=True, timeout=120
    )
    assert text.returncode == 0
    assert "closed without the admin token" in text.stdout


def test_nobody_there() -> None:
    ended = subprocess.run(
        [*DOCTOR, "--url", "127.0.0.1:1"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "failure" in ended.stdout
    assert "nima serve" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_a_dead_stub_behind_green_health(start_server: Callable[..., object]) -> None:
    server = start_server()
    os.kill(min(server.stub_pids()), signal.SIGKILL)
    finding = found(Target(server.grpc_url, timeout=3.0))["scoring"]
    assert finding.status == "failure"
    assert finding.advice


def test_another_checkpoint_and_damaged_artefacts(shared_server, tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    shutil.copytree(default_repository(), copy)
    path = copy / NETWORK_MODEL / "1" / "model.json"
    path.write_text(path.read_text().replace('"checkpoint_sha256": "', '"checkpoint_sha256": "ff'))
    checks = found(Target(shared_server.grpc_url, model_repository=copy))
    assert checks["artefacts"].status == "failure"
    assert "nima export" in checks["artefacts"].advice
    assert checks["manifest"].status == "failure"
    assert "roll the repository out" in checks["manifest"].advice


def test_open_apis_are_told(start_server: Callable[..., object]) -> None:
    """A server started by hand, without the restrictions."""
    from nima_build.server import EmbeddedServer

    class Careless(EmbeddedServer):
        def _command(self) -> list[str]:
            return [a for a in super()._command() if "restricted" not in a]

    server = start_server()
    with Careless(server.options) as careless:
        finding = found(Target(careless.grpc_url))["closed APIs"]
    assert finding.status == "warning"
    assert "model-repository" in finding.detail


def test_over_tls(start_server: Callable[..., object], tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert = authority.issue_cert("127.0.0.1")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    tls = ServerTLS(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    server = start_server(tls=tls)
    checks = found(Target(server.grpc_url, tls=TLS(ca_file=tmp_path / "ca.pem")))
    assert checks["scoring"].status == "ok"
    checks = found(Target(server.grpc_url, timeout=3.0))
    assert checks["contract"].status == "failure"
