"""Starts each peer on a free loopback port, and says how a photo is sent to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tritonclient.http as triton_http
from guard import guarded
from http_load import LoadError, ask, post

from nima_build.bench.cpu import cpu_seconds
from nima_build.metadata import ModelMetadata
from nima_build.repository import check_graph
from nima_build.server import EmbeddedServer, ServerOptions
from nima_client._os_errors import in_words

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parents[1] / "client"
START_TIMEOUT = 120.0  # Ray on a busy machine
STOP_TIMEOUT = 20.0
_CLIENT_TYPE = "multipart/form-data; boundary=nima"


@dataclass(frozen=True)
class Target:
    """A running server.

    Attributes:
        name: as the table shows it.
        address: host and port.
        requests: one whole HTTP request a photo.
        pid: its first process; the others descend from it.
        kind: how its answers are read: ``json`` or ``triton``.
    """

    name: str
    address: tuple[str, int]
    requests: list[bytes]
    pid: int
    kind: str = "json"

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far.

        Raises:
            LoadError: the first of them has ended.
        """
        try:
            descendants = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            raise LoadError("its first process has ended") from None
        return cpu_seconds([self.pid, *(process.pid for process in descendants)])

    def mean(self, index: int) -> float:
        """Mean rating of one photo, to check that every server does the same work."""
        body = ask(self.address, self.requests[index])
        if self.kind == "triton":
            outputs = json.loads(body)["outputs"]
            return float(next(o["data"][0] for o in outputs if o["name"] == "MEAN"))
        return float(json.loads(body)["mean"])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _raw(photo: bytes) -> bytes:
    return post("127.0.0.1", "/score", "image/jpeg", photo)


def _multipart(photo: bytes) -> bytes:
    body = (
        b'--nima\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n--nima--\r\n"
    )
    return post("127.0.0.1", "/score", _CLIENT_TYPE, body)


def triton_request(photo: bytes) -> bytes:
    """A request of one photo for Triton's HTTP endpoint."""
    image = triton_http.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    outputs = [
        triton_http.InferRequestedOutput(name, binary_data=False)
        for name in ("DISTRIBUTION", "MEAN", "STD")
    ]
    body, length = triton_http.InferenceServerClient.generate_request_body([image], outputs=outputs)
    extra = f"Inference-Header-Content-Length: {length}\r\n"
    return post("127.0.0.1", "/v2/models/nima/infer", "application/octet-stream", body, extra)


def _wait(target: Target, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    problem = "it never listened"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            target.mean(0)
            return
        except (OSError, LoadError, ValueError) as error:
            problem = in_words(error)
            time.sleep(0.25)
    tail = " / ".join(log.read_text(errors="replace").splitlines()[-6:])
    raise RuntimeError(f"{target.name} did not start ({problem}): {tail}")


@dataclass(frozen=True)
class Setting:
    """What all servers share.

    Attributes:
        photos: encoded files.
        repository: the product's model repository.
        metadata: its network.
        workers: processes or instances for each server: the cores.
        python: interpreter of the peers' environment.
        folder: for logs and rendered repositories.
        precision: ``fp32`` or ``int8``: the graph that all of them run.
    """

    photos: list[bytes]
    repository: Path
    metadata: ModelMetadata
    workers: int
    python: Path
    folder: Path
    precision: str = "fp32"

    @property
    def onnx(self) -> Path:
        """The network."""
        return check_graph(self.repository, self.precision)


@contextlib.contextmanager
def _process(
    name: str, setting: Setting, command: list[str], port: int, request: str, pillow: bool = False
) -> Iterator[Target]:
    log = setting.folder / f"{name.replace(' ', '_')}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HERE}{os.pathsep}{CLIENT}",
        "NIMA_ONNX": str(setting.onnx),
        "NIMA_SPEC": json.dumps(setting.metadata.spec.to_dict()),
        "NIMA_WORKERS": str(setting.workers),
        "NIMA_PILLOW": "1" if pillow else "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(setting.folder / "bentoml"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }
    make = {"raw": _raw, "multipart": _multipart}[request]
    requests = [make(photo) for photo in setting.photos]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    target = Target(name, ("127.0.0.1", port), requests, process.pid)
    with guarded(process.pid):
        try:
            _wait(target, process, log)
            yield target
        finally:
            # Its own session: workers and helpers end with it, nothing else does.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def product(setting: Setting) -> Iterator[Target]:
    """The server of this project."""
    options = ServerOptions(model_repository=setting.repository, precision=setting.precision)
    with EmbeddedServer(options) as server, guarded(server.pid):
        yield triton_target("NIMA on Triton", server, setting.photos)


def triton_target(name: str, server: EmbeddedServer, photos: list[bytes]) -> Target:
    """An embedded server that runs, asked over HTTP, a photo a request."""
    host, _, port = server.http_url.partition(":")
    assert server.pid is not None
    requests = [triton_request(photo) for photo in photos]
    return Target(name, (host, int(port)), requests, server.pid, "triton")


def fastapi(setting: Setting, pillow: bool = False) -> contextlib.AbstractContextManager[Target]:
    """FastAPI and uvicorn, tuned; or with a plain Pillow decode."""
    port = _free_port()
    command = [
        *(str(setting.python), "-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1"),
        *("--port", str(port), "--workers", str(setting.workers), "--loop", "uvloop"),
        *("--http", "httptools", "--no-access-log", "--log-level", "warning"),
    ]
    name = "FastAPI, Pillow decode" if pillow else "FastAPI + ONNX Runtime"
    return _process(name, setting, command, port, "raw", pillow)


def litserve(setting: Setting) -> contextlib.AbstractContextManager[Target]:
    """LitServe."""
    port = _free_port()
    command = [str(setting.python), "litserve_app.py", str(port), str(setting.workers)]
    return _process("LitServe", setting, command, port, "multipart")


def bentoml(setting: Setting) -> contextlib.AbstractContextManager[Target]:
    """BentoML."""
    port = _free_port()
    command = [
        *(str(setting.python), "-m", "bentoml", "serve", "bentoml_app:Nima"),
        *("--host", "127.0.0.1", "--port", str(port), "--working-dir", str(HERE)),
    ]
    return _process("BentoML", setting, command, port, "raw")


def ray_serve(setting: Setting) -> contextlib.AbstractContextManager[Target]:
    """Ray Serve; only in a network namespace, see ``loopback.py``."""
    port = _free_port()
    command = [
        *(str(setting.python), "ray_app.py", str(port), str(setting.workers)),
        str(setting.folder / "ray"),
    ]
    return _process("Ray Serve", setting, command, port, "raw")
