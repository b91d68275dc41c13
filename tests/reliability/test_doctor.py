"""``nima doctor`` finds what is wrong with a real server, and says what to do."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import _faketime
import pytest
import trustme
from _load import stubs_of
from PIL import features

from nima_build.doctor import Finding, Target, _model, examine
from nima_build.doctor._local import installation
from nima_build.repository import default_repository
from nima_build.server import EmbeddedServer, ServerOptions, ServerTLS
from nima_client import TLS, NimaClient
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
    for check in ("installation", "artefacts", "reachable", "contract", "versions", "scoring",
                  "manifest", "golden score", "latency", "clock", "closed APIs",
                  "queue"):  # fmt: skip
        assert rows[check]["status"] == "ok", rows[check]
        assert rows[check]["advice"] == ""
    assert "largest difference" in rows["golden score"]["detail"]
    assert "gRPC and HTTP" in rows["closed APIs"]["detail"]
    text = subprocess.run(
        [*DOCTOR, "--url", shared_server.grpc_url], capture_output=True, text=True, timeout=120
    )
    assert text.returncode == 0
    assert "closed without the admin token" in text.stdout


@pytest.mark.filterwarnings("error")
def test_a_pillow_older_than_avif_is_told_without_a_warning_of_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(features.modules, "avif", raising=False)  # as in Pillow 11.0
    finding = installation()
    assert finding.status == "warning"
    assert "no AVIF" in finding.detail


def test_nobody_there() -> None:
    ended = subprocess.run(
        [*DOCTOR, "--url", "127.0.0.1:1"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "failure" in ended.stdout
    assert "nima serve" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_address_is_shown_as_it_is(encoding: str) -> None:
    """Neither is ":100:" the name of an emoji, nor does a foreign letter end the examination."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("写.invalid", "写.invalid")):
        ended = subprocess.run(
            [*DOCTOR, "--url", f"{host}:100"], capture_output=True, timeout=60, env=environment
        )
        assert ended.returncode == 1, ended.stderr
        assert f"{shown}:100: ".encode(encoding, "backslashreplace") in ended.stdout
        assert b"Traceback" not in ended.stderr


def test_nowhere_to_write_to_is_one_line() -> None:
    line = 'exec "$@" >&-'
    ended = subprocess.run(
        ["sh", "-c", line, "-", *DOCTOR, "--url", "127.0.0.1:1"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "nima doctor: standard output is closed: there is nowhere to write to"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tls-ca=/nowhere/ca.pem"], "does not exist"),
        (["--tls-cert={file}"], "go together"),
        (["--model-repository=/nowhere"], "does not exist"),
        (["--header=token"], "name=value"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    given = [argument.format(file=file) for argument in arguments]
    ended = subprocess.run([*DOCTOR, *given], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert said in " ".join(ended.stderr.replace("│", " ").split())


def test_a_dead_stub_behind_green_health(
    shared_server, start_server: Callable[..., object]
) -> None:
    """Of two servers behind one address, the one that is sick is told from the one that is well."""
    server = start_server()
    both = Target(f"ipv4:{shared_server.grpc_url},{server.grpc_url}", timeout=3.0)
    findings = {(f.server, f.check): f for f in examine(both)}
    assert findings["", "same model"].status == "ok"
    # The network's is the only one of its kind: a decoder's neighbours might answer in its place.
    (stub,) = stubs_of(server, NETWORK_MODEL)
    os.kill(stub, signal.SIGKILL)
    findings = {(f.server, f.check): f for f in examine(both)}
    assert findings[shared_server.grpc_url, "scoring"].status == "ok"
    finding = findings[server.grpc_url, "scoring"]
    assert finding.status == "failure"
    assert finding.advice
    server.end_processes(grace=0)
    findings = {(f.server, f.check): f for f in examine(both)}
    assert findings[server.grpc_url, "reachable"].status == "failure"
    assert "1 of 2 servers did not answer" in findings["", "same model"].detail


@pytest.mark.skipif(_faketime.LIBRARY is None, reason="libfaketime is not installed")
@pytest.mark.parametrize(("offset", "said"), [("+3600", "behind"), ("-3600", "ahead of")])
def test_clocks_that_differ_by_an_hour(
    shared_server, tmp_path: Path, offset: str, said: str
) -> None:
    """The operator's clock is wrong by an hour: the server's is measured against it."""
    clock = tmp_path / "clock"
    clock.write_text(offset)
    ended = subprocess.run(
        [*DOCTOR, "--url", shared_server.grpc_url, "--json"],
        env=_faketime.environment(clock), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    rows = {row["check"]: row for row in map(json.loads, ended.stdout.splitlines())}
    assert rows["clock"]["status"] == "warning", ended.stdout + ended.stderr
    seconds = int(rows["clock"]["detail"].split("clock is ")[1].split()[0])
    assert abs(seconds - 3600) < 60
    assert said in rows["clock"]["detail"]
    assert "NTP" in rows["clock"]["advice"]


def test_an_address_that_is_none() -> None:
    for url in ("no-such-host.invalid:8001", "http://127.0.0.1:8000", "127.0.0.1"):
        checks = found(Target(url))
        assert checks["reachable"].status == "failure", url
        assert checks["reachable"].advice


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


def test_artefacts_that_cannot_be_read_do_not_end_the_examination(tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    shutil.copytree(default_repository(), copy)
    (copy / "SHA256SUMS").write_bytes(b"\xff\xfe")
    finding = found(Target("127.0.0.1:1", model_repository=copy))["artefacts"]
    assert finding.status == "failure"
    assert "SHA256SUMS is unreadable" in finding.detail
    shutil.copyfile(default_repository() / "SHA256SUMS", copy / "SHA256SUMS")
    graph = copy / NETWORK_MODEL / "1" / "model.json"
    graph.unlink()
    graph.mkdir()
    lines = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(line for line in lines if graph.name not in line))
    checks = found(Target("127.0.0.1:1", model_repository=copy))
    assert checks["artefacts"].status == "failure"
    assert "able to read" in checks["artefacts"].advice
    assert checks["reachable"].status == "failure"


def test_open_apis_are_told(repository: Path) -> None:
    """A server started by hand, without the restrictions."""

    class Careless(EmbeddedServer):
        def _command(self) -> list[str]:
            return [a for a in super()._command() if "restricted" not in a]

    with Careless(ServerOptions(model_repository=repository, instances=1)) as careless:
        finding = found(Target(careless.grpc_url, careless.http_url))["closed APIs"]
        wrong = found(Target(careless.grpc_url, careless.metrics_url))["closed APIs"]
        careless.end_processes(grace=0)
    assert finding.status == "warning"
    for api in ("model-repository", "shared-memory", "trace", "logging"):
        assert f"{api}," in f"{finding.detail},"
        assert f"{api} (HTTP)" in finding.detail
        assert api in wrong.detail
    assert "not Triton's HTTP endpoint" in wrong.detail


def test_a_port_that_is_not_http_is_no_open_api(shared_server: EmbeddedServer) -> None:
    """Triton's metrics port answers 200, and nothing, to every path."""
    finding = found(Target(shared_server.grpc_url, shared_server.metrics_url))["closed APIs"]
    assert finding.status == "warning"
    assert "not Triton's HTTP endpoint" in finding.detail
    assert "check --http-url" in finding.advice


def test_a_name_that_no_host_can_have_is_told(shared_server: EmbeddedServer) -> None:
    url = f"{'a' * 70}.test:1"
    checks = found(Target(shared_server.grpc_url, url, url))
    for check, option in (("closed APIs", "--http-url"), ("metrics", "--metrics-url")):
        assert checks[check].status == "warning"
        assert "too long" in checks[check].detail
        assert option in checks[check].advice


@pytest.mark.parametrize("port", ["grpc", "0x1f42"])
def test_ports_that_do_not_answer_http_are_told(shared_server: EmbeddedServer, port: str) -> None:
    url = shared_server.grpc_url if port == "grpc" else f"127.0.0.1:{port}"
    checks = found(Target(shared_server.grpc_url, url, url))
    said = "does not answer HTTP" if port == "grpc" else "nonnumeric port"
    for check, option in (("closed APIs", "--http-url"), ("metrics", "--metrics-url")):
        assert checks[check].status == "warning"
        assert said in checks[check].detail
        assert option in checks[check].advice


def test_metrics_of_something_else_say_nothing_of_the_queue(shared_server: EmbeddedServer) -> None:
    class Exporter(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"node_load1 0.5\n")

    with http.server.HTTPServer(("127.0.0.1", 0), Exporter) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{other.server_port}"
        checks = found(Target(shared_server.grpc_url, metrics_url=url))
        other.shutdown()
    assert "queue" not in checks
    assert checks["metrics"].status == "warning"
    assert "no metrics of the model nima" in checks["metrics"].detail


def test_servers_that_score_differently_are_told(shared_server: EmbeddedServer) -> None:
    with NimaClient(shared_server.grpc_url) as client:
        info = client.model_info()
    for field, status in (
        ("checkpoint_sha256", "failure"),
        ("preprocessing_id", "failure"),
        ("precision", "warning"),
        ("request_size", "ok"),
    ):
        value = 7 if field == "request_size" else "int8"
        changed = dataclasses.replace(info.served, **{field: value})
        other = dataclasses.replace(info, served=changed)
        finding = _model.same_everywhere({"a:1": info, "b:1": other}, 2)
        assert finding.status == status, field
        assert ("at b:1" in finding.detail) == (status != "ok")


def test_golden_photos_of_another_package_are_left_out(
    shared_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _model.load_golden()
    photo = tmp_path / "astronaut.png"
    photo.write_bytes(b"another")
    monkeypatch.setattr(_model, "golden_photos", lambda: [photo])
    with NimaClient(shared_server.grpc_url) as client:
        info = client.model_info()
        served = dataclasses.replace(info.served, checkpoint_sha256=kept.checkpoint_sha256)
        finding = _model.golden(client, dataclasses.replace(info, served=served))
    assert finding.status == "skipped"


def test_over_tls(start_server: Callable[..., object], tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert = authority.issue_cert("127.0.0.1")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    tls = ServerTLS(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    server = start_server(tls=tls)
    checks = found(Target(server.grpc_url, tls=TLS(ca_file=tmp_path / "ca.pem")))
    for check in ("scoring", "clock", "closed APIs"):
        assert checks[check].status == "ok", checks[check]
    checks = found(Target(server.grpc_url, timeout=3.0))
    assert checks["contract"].status == "failure"
    assert "--tls-ca" in checks["contract"].advice
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    ended = subprocess.run(
        [*DOCTOR, "--url", server.grpc_url, "--tls-ca", tmp_path / "other.pem"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == ""  # gRPC's own log would stand between the findings
    (told,) = re.findall(r"failure +contract +(.*)", ended.stdout)
    assert len(told) < 300 or told.endswith("...")
