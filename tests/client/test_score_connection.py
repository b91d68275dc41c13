"""``nima score`` and a server that asks for certificates or headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

pytest.importorskip("typer", reason="the commands need the extra cli")

from kserve_server import KServeServer
from score_command import run

from nima_build.server import EmbeddedServer, ServerError
from nima_client import _defaults


@pytest.fixture
def secured(certificates: dict[str, Any]) -> Iterator[KServeServer]:
    """A server that has TLS, and takes only clients of its own authority."""
    credentials = grpc.ssl_server_credentials(
        [certificates["pair"]], certificates["root"], require_client_auth=True
    )
    with KServeServer(credentials=credentials) as server:
        yield server


def scored(done: Any) -> int:
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def test_tls_of_a_private_authority(folder: Path, certificates: dict[str, Any]) -> None:
    files = certificates["files"]
    credentials = grpc.ssl_server_credentials([certificates["pair"]])
    with KServeServer(credentials=credentials) as server:
        for url in (server.url, f"grpcs://{server.url}"):
            done = run(folder, "-f", "jsonl", "--url", url, "--tls-ca", files["ca"])
            assert scored(done) == 4, done.stderr
        by_environment = run(folder, "-f", "jsonl", "--tls-ca", files["ca"], url=server.url)
        assert scored(by_environment) == 4, by_environment.stderr
        strange = run(folder, "--url", server.url, "--tls-ca", files["other"])
        assert strange.returncode == 3
        assert "certificates" in strange.stderr
        assert "Traceback" not in strange.stderr


def test_mutual_tls(
    folder: Path, certificates: dict[str, Any], secured: KServeServer, tmp_path: Path
) -> None:
    files = certificates["files"]
    mutual = ["--tls-ca", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"]]
    output = tmp_path / "out.csv"
    done = run(folder, "--url", secured.url, *mutual, "-o", output)
    assert done.returncode == 0, done.stderr
    assert len(output.read_text().splitlines()) == 5
    assert run(folder, "--url", secured.url, "--tls-ca", files["ca"]).returncode == 3


def test_headers_go_with_every_call(folder: Path, server: KServeServer) -> None:
    done = run(
        folder, "-f", "jsonl", "--url", server.url,
        "--header", "X-Api-Key=a=b", "--header", "authorization=Bearer t",
    )  # fmt: skip
    assert scored(done) == 4, done.stderr
    assert len(server.metadata) > 1
    for sent in server.metadata:
        assert sent["x-api-key"] == "a=b"
        assert sent["authorization"] == "Bearer t"


@pytest.mark.parametrize(
    "arguments",
    [["--tls-ca={ca}"], ["--tls-cert={cert}", "--tls-key={key}"], ["--header=token=t"]],
)
def test_without_an_address_there_is_no_server_to_secure(
    folder: Path, certificates: dict[str, Any], arguments: list[str]
) -> None:
    given = [argument.format(**certificates["files"]) for argument in arguments]
    done = run(folder, *given)
    assert done.returncode == 2
    assert "pass --url" in done.stderr
    assert "NIMA_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-ca=/nowhere/ca.pem"], "does not exist"),
        (["--tls-cert={cert}"], "go together"),
        (["--tls-key={key}"], "go together"),
        (["--header=token"], "name=value"),
        (["--header==t"], "name=value"),
        (["--header=two words=t"], "name=value"),
        (["--header=name=t\nu"], "name=value"),
    ],
)
def test_wrong_options_are_named(
    folder: Path, certificates: dict[str, Any], arguments: list[str], message: str
) -> None:
    given = [argument.format(**certificates["files"]) for argument in arguments]
    done = run(folder, "--url", "127.0.0.1:1", *given)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_without_a_server_here_it_says_how_to_name_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(server: EmbeddedServer) -> None:
        raise ServerError("tritonserver is not installed")

    monkeypatch.setattr(_defaults, "URL", "127.0.0.1:1")
    monkeypatch.setattr(EmbeddedServer, "start", start)
    done = run(folder)
    assert done.returncode == 3
    assert "--url host:port" in done.stderr
    assert "tritonserver is not installed" in done.stderr
