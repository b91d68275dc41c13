"""What a server keeps closed by default, TLS both ways, and no pickle anywhere in the tree."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fnmatch
import http.client
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import trustme
from _corpus import seeds
from _load import supervised
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from nima_build import health
from nima_build.server import (
    ADMIN_HEADER,
    GRPC_ADMIN_HEADER,
    EmbeddedServer,
    ServerError,
    ServerOptions,
    ServerTLS,
)
from nima_client import NO_RETRIES, TLS, NimaClient, TLSError, TransportError
from nima_client.contract import MODEL_NAME

TREE = Path(__file__).resolve().parents[2]
TOKEN = "test-admin-token"
PHOTO = seeds("JPEG")[0]

CLOSED = {
    "repository index": lambda c, **k: c.get_model_repository_index(**k),
    "load": lambda c, **k: c.load_model(MODEL_NAME, **k),
    "unload": lambda c, **k: c.unload_model(MODEL_NAME, **k),
    "register shared memory": lambda c, **k: c.register_system_shared_memory(
        "x", "/nima_test", 64, **k
    ),
    "list shared memory": lambda c, **k: c.get_system_shared_memory_status(**k),
    "trace": lambda c, **k: c.update_trace_settings(
        settings={"trace_file": "/tmp/x", "trace_level": ["TENSORS"]}, **k
    ),
    "logging": lambda c, **k: c.update_log_settings({"log_verbose_level": 1}, **k),
}
OPEN = {
    "health": lambda c: c.is_server_ready(),
    "metadata": lambda c: c.get_model_metadata(MODEL_NAME),
    "config": lambda c: c.get_model_config(MODEL_NAME),
    "statistics": lambda c: c.get_inference_statistics(MODEL_NAME),
}


@pytest.fixture(scope="module")
def admin_server(repository: Path):
    options = ServerOptions(model_repository=repository, instances=1, admin_token=TOKEN)
    with EmbeddedServer(options) as server:
        yield server
        server.end_processes(grace=0)


@pytest.mark.parametrize("call", CLOSED)
def test_what_could_change_the_server_is_refused_without_the_token(admin_server, call: str) -> None:
    with triton_grpc.InferenceServerClient(admin_server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match="protocol is restricted"):
            CLOSED[call](client)
        with pytest.raises(InferenceServerException, match="protocol is restricted"):
            CLOSED[call](client, headers={GRPC_ADMIN_HEADER: "wrong-token"})
    with triton_http.InferenceServerClient(admin_server.http_url) as client:
        with pytest.raises(InferenceServerException, match="API is restricted"):
            CLOSED[call](client)
        with pytest.raises(InferenceServerException, match="API is restricted"):
            CLOSED[call](client, headers={ADMIN_HEADER: "wrong-token"})


OTHER_WAYS = [
    ("POST", "/v2//repository/index"), ("POST", "//v2/repository/index"),
    ("POST", "/v2/repository/index/"), ("POST", "/v2/repository/index?x=1"),
    ("POST", "/v2/%72epository/index"), ("POST", "/v2/./repository/index"),
    ("POST", "http://x/v2/repository/index"), ("POST", "/V2/repository/index"),
    ("POST", f"/v2/repository/models/{MODEL_NAME}/unload/"),
    ("POST", f"/v2/repository/x/models/{MODEL_NAME}/unload"),
    ("GET", "/v2/systemsharedmemory/region/a/status"), ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/../register"),
    ("GET", f"/v2/models/{MODEL_NAME}/trace/setting"),
    ("GET", f"/v2/models/{MODEL_NAME}/versions/1/trace/setting"),
]  # fmt: skip


def test_there_is_no_other_way_to_what_is_closed(admin_server) -> None:
    """Paths that a check of names may miss, and the calls of the same APIs about one model."""
    host, _, port = admin_server.http_url.rpartition(":")
    for method, path in OTHER_WAYS:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body=b"{}" if method == "POST" else None)
            assert connection.getresponse().status in (403, 404), path
    with triton_grpc.InferenceServerClient(admin_server.grpc_url) as client:
        for call in (
            lambda: client.get_trace_settings(MODEL_NAME),
            lambda: client.update_trace_settings(MODEL_NAME, {"trace_rate": "1"}),
            lambda: client.get_cuda_shared_memory_status(),
            lambda: client.unregister_system_shared_memory(),
        ):
            with pytest.raises(InferenceServerException, match="protocol is restricted"):
                call()
    assert 1 <= _score(admin_server.grpc_url, None) <= 10


def test_the_token_opens_and_everything_a_client_needs_is_open(admin_server) -> None:
    with triton_grpc.InferenceServerClient(admin_server.grpc_url) as client:
        index = client.get_model_repository_index(headers={GRPC_ADMIN_HEADER: TOKEN})
        assert {m.name for m in index.models} >= {MODEL_NAME}
        for name, call in OPEN.items():
            assert call(client), name
    with triton_http.InferenceServerClient(admin_server.http_url) as client:
        for name, call in OPEN.items():
            assert call(client), name
    with NimaClient(admin_server.grpc_url) as client:
        assert 1 <= client.score_one(PHOTO).mean <= 10
        assert client.model_info().served.checkpoint_sha256


def test_without_a_token_of_the_operators_nobody_knows_it(
    start_server: Callable[..., object],
) -> None:
    server = start_server()
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        for guess in ({}, {GRPC_ADMIN_HEADER: ""}, {GRPC_ADMIN_HEADER: "None"}):
            with pytest.raises(InferenceServerException, match="restricted"):
                client.load_model(MODEL_NAME, headers=guess)


def _tiny_chunks(address: str, count: int = 700_000) -> None:
    """An HTTP request of very many chunks of one byte each."""
    host, _, port = address.rpartition(":")
    head = "POST /v2/models/nima/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection = socket.create_connection((host, int(port)), timeout=30)
    with connection, contextlib.suppress(OSError):
        connection.sendall(head.encode())
        for _ in range(count // 5_000):
            connection.sendall(b"1\r\nA\r\n" * 5_000)
        connection.sendall(b"0\r\n\r\n")
        connection.recv(1024)


def test_a_hostile_http_request_costs_a_restart_at_most(repository: Path) -> None:
    """One request of tiny chunks ends tritonserver 2.51 (CVE-2025-23310): why HTTP is open on
    loopback only, and closed in the Kubernetes manifests.
    """
    with supervised(ServerOptions(model_repository=repository, instances=1)) as (server, sup, _):
        first = server.pid
        _tiny_chunks(server.metrics_url)
        _score(server.grpc_url, None)
        assert (server.pid, sup.restarts) == (first, 0), "metrics stay open: they must withstand it"
        _tiny_chunks(server.http_url)
        with NimaClient(server.grpc_url) as client:
            assert 1 <= client.score_one(PHOTO).mean <= 10
        assert sup.restarts <= 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "127.0.0.2"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "nima.example"}, False),
        ({"host": "0.0.0.0", "http": True}, True),
        ({"http": False}, False),
    ],
)
def test_http_is_open_on_loopback_only_unless_asked_for(
    given: dict[str, object], expected: bool
) -> None:
    assert ServerOptions(**given).serves_http is expected


def test_a_token_that_the_argument_cannot_carry_is_refused() -> None:
    for token in ("short", "has,comma,inside", "has=equals=sign"):
        with pytest.raises(ServerError, match="admin token"):
            ServerOptions(admin_token=token)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An authority, a server and a client certificate of it, and a client of another authority."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    made = {
        "server": ours.issue_cert("127.0.0.1", "localhost"),
        "client": ours.issue_cert("client.example"),
        "stranger": theirs.issue_cert("client.example"),
    }
    for name, cert in made.items():
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        for blob in cert.cert_chain_pems:
            blob.write_to_path(folder / f"{name}.pem", append=True)
    theirs.cert_pem.write_to_path(folder / "other-ca.pem")
    return {path.name: path for path in folder.iterdir()}


def _tls(files: dict[str, Path], mutual: bool) -> ServerTLS:
    return ServerTLS(files["server.pem"], files["server.key"], files["ca.pem"], mutual=mutual)


def _score(url: str, tls: TLS | None) -> float:
    with NimaClient(url, tls=tls, retry=NO_RETRIES, connect_timeout=5) as client:
        return client.score_one(PHOTO).mean


def test_tls(start_server: Callable[..., object], certificates: dict[str, Path]) -> None:
    server = start_server(tls=_tls(certificates, mutual=False))
    assert 1 <= _score(server.grpc_url, TLS(ca_file=certificates["ca.pem"])) <= 10
    with pytest.raises(TLSError):
        _score(server.grpc_url, TLS(ca_file=certificates["other-ca.pem"]))
    with pytest.raises(TransportError):
        _score(server.grpc_url, None)
    # The unencrypted way in is gone.
    with triton_http.InferenceServerClient(server.http_url) as client, pytest.raises(OSError):
        client.is_server_live()


def test_tls_files_are_found_from_the_current_folder(
    start_server: Callable[..., object],
    certificates: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(certificates["ca.pem"].parent)
    server = start_server(tls=ServerTLS(Path("server.pem"), Path("server.key"), Path("ca.pem")))
    assert 1 <= _score(server.grpc_url, TLS(ca_file="ca.pem")) <= 10


def test_tls_where_the_certificate_does_not_name_the_address(
    start_server: Callable[..., object], certificates: dict[str, Path]
) -> None:
    """As with --host 0.0.0.0, which no certificate names: the probe is told what to expect."""
    tls = _tls(certificates, mutual=False)
    with pytest.raises(ServerError, match=r"last attempt with: .*(?i:handshake|peer name|verif)"):
        start_server(host="127.0.0.2", tls=tls, start_timeout=6.0)
    named = dataclasses.replace(tls, server_name="localhost")
    assert start_server(host="127.0.0.2", tls=named).probe(10)().alive


def test_mutual_tls(
    start_server: Callable[..., object],
    certificates: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_server(tls=_tls(certificates, mutual=True))
    ca = certificates["ca.pem"]

    def shown(name: str) -> TLS:
        return TLS(ca_file=ca, cert_file=certificates[f"{name}.pem"],
                   key_file=certificates[f"{name}.key"])  # fmt: skip

    assert 1 <= _score(server.grpc_url, shown("client")) <= 10
    with pytest.raises(TransportError):
        _score(server.grpc_url, TLS(ca_file=ca))
    with pytest.raises(TransportError):
        _score(server.grpc_url, shown("stranger"))
    # The supervisor's probe, which start() has used already, gets in.
    assert server.probe(10)().alive
    # So does the health check of image and Kubernetes, when told the files; without, it fails.
    assert health.main([server.grpc_url]) == 1
    monkeypatch.setenv("NIMA_TLS_CA", str(ca))
    monkeypatch.setenv("NIMA_TLS_CERT", str(certificates["client.pem"]))
    assert health.main([server.grpc_url]) == 2
    monkeypatch.setenv("NIMA_TLS_KEY", str(certificates["client.key"]))
    assert health.main([server.grpc_url]) == 0


def test_commands_with_a_server_show_their_certificate(
    start_server: Callable[..., object], certificates: dict[str, Path], tmp_path: Path
) -> None:
    from nima_build.cli.verify import app as verify
    from nima_training.cli.analyse import app as analyse

    server = start_server(tls=_tls(certificates, mutual=True))
    asked = ["--url", server.grpc_url, "--tls-ca", str(certificates["ca.pem"])]
    shown = ["--tls-cert", str(certificates["client.pem"])]
    shown += ["--tls-key", str(certificates["client.key"]), "--header", "tenant=a"]
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "a.jpg"
    photo.write_bytes(PHOTO)
    for app, arguments in (
        (verify, [str(photo), *asked]),
        (analyse, [str(photo.parent), *asked, f"--out={tmp_path / 'out'}", "--kind=exposure"]),
    ):
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code != 0
        done = CliRunner().invoke(app, [*arguments, *shown])
        assert done.exit_code == 0, done.output


def _tracked(suffix: str = "") -> list[Path]:
    """Files of the tree: what git lists or, without git, what .gitignore does not name."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=TREE, capture_output=True, text=True, check=False
        ).stdout.split("\0")
    except FileNotFoundError:
        listed = []
    paths = [TREE / name for name in listed if name] or list(_walk(TREE))
    assert len(paths) > 100
    return [path for path in paths if path.name.endswith(suffix) and path.is_file()]


def _walk(folder: Path) -> Iterator[Path]:
    ignored = [line.strip("/") for line in (TREE / ".gitignore").read_text().split()] + [".git"]
    for path in folder.iterdir():
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in ignored):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def test_without_git_the_same_files_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {path for path in _tracked() if path.name != ".git"}
    monkeypatch.setenv("PATH", "/nowhere")
    assert listed <= set(_tracked())


def test_package_code_does_not_deserialise_code() -> None:
    """No pickle (nor what loads one) and no eval of data in anything that is shipped."""
    forbidden_modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    forbidden_calls = {"eval", "exec"}
    found = []
    shipped = ("client/", "build/", "training/", "model_repository/", "docker/")
    for path in _tracked(".py"):
        name = path.relative_to(TREE).as_posix()
        if not name.startswith(shipped):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                found += [where for a in node.names if a.name.split(".")[0] in forbidden_modules]
            elif isinstance(node, ast.ImportFrom):
                found += [where] * ((node.module or "").split(".")[0] in forbidden_modules)
            elif isinstance(node, ast.Call):
                found += [where] * _is_unsafe_call(node, forbidden_calls)
    assert found == []


def _is_unsafe_call(node: ast.Call, forbidden: set[str]) -> bool:
    keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    if isinstance(node.func, ast.Name):
        return node.func.id in forbidden
    if not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
        return False
    owner, name = node.func.value.id, node.func.attr
    if (owner, name) == ("torch", "load"):
        return keywords.get("weights_only") is not True
    if owner in ("np", "numpy") and name == "load":
        return keywords.get("allow_pickle") is True
    return (owner, name) == ("yaml", "load") or keywords.get("shell") is True


def test_no_pickled_file_is_in_the_tree() -> None:
    suspicious = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".bin"}
    assert [p.name for p in _tracked() if p.suffix in suspicious] == []
    # Protocols 2 to 5 begin so; a PyTorch archive is a ZIP.
    heads = {p: p.open("rb").read(4) for p in _tracked()}
    pickled = [p.name for p, head in heads.items() if head[:1] == b"\x80" and head[1:2] <= b"\x05"]
    assert [n for n in pickled if n] == []
    assert [p.name for p, h in heads.items() if h == b"PK\3\4" and p.suffix != ".docx"] == []
