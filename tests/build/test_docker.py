"""The images, short of building them: linters, pins, compose, and the entrypoint under a shell.

No docker engine is at hand. The entrypoint really runs, and really starts a tritonserver: the
embedded one, in the place of the image's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from nima_build.engine_manifest import EngineManifest, EngineOptions

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
ENTRYPOINT = DOCKER / "entrypoint.sh"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
BIN = Path(sys.executable).parent


# What pip says of an index that does not answer, answers too late, or has a fault of its own.
UNREACHABLE = re.compile(
    "NewConnectionError|ConnectionError|Connection(?:Reset|Aborted)|ConnectTimeout|ProxyError"
    "|ReadTimeout|[Rr]ead timed out|ProtocolError|IncompleteRead"
    r"|\b(?:429|5\d\d) (?:Server|Client) Error|too many 5\d\d error responses"
)


def normalised(package: str) -> str:
    """The one spelling of a package's name, as the index has it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def pins(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {
        normalised(line.split("==")[0]): line.split(" ;")[0].split("==")[1].strip()
        for line in reversed(lines)
        if "==" in line and not line.startswith("#") and "< '3.11'" not in line
    }


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_lints(path: Path) -> None:
    linter = BIN / "hadolint"
    if not linter.is_file():
        pytest.skip("hadolint is not installed (extra dev)")
    done = subprocess.run([linter, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_server_image_reports_to_nobody() -> None:
    """The ONNX Runtime in it is no child of a process of ours that says so."""
    assert "ORT_DISABLE_TELEMETRY=1 " in (DOCKER / "server.Dockerfile").read_text()


def test_entrypoint_lints() -> None:
    linter = BIN / "shellcheck"
    if not linter.is_file():
        pytest.skip("shellcheck is not installed (extra dev)")
    done = subprocess.run([linter, ENTRYPOINT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_base_image_is_pinned_and_its_tensorrt_is_the_one_installed() -> None:
    text = (DOCKER / "server.Dockerfile").read_text()
    assert re.search(r"^ARG TRITON_TAG=\d\d\.\d\d-py3$", text, re.MULTILINE)
    stated = re.search(r"TensorRT (\d+\.\d+\.\d+\.\d+)", text)
    assert stated
    page = (ROOT / "docs" / "deploy-gpu.md").read_text()
    for version in re.findall(r"(?:Triton|CUDA|TensorRT|DALI|ONNX Runtime) (\d+(?:\.\d+)+)", text):
        assert f"| {version}" in page, version
    assert pins(DOCKER / "requirements-server.txt")["tensorrt-cu12-bindings"] == stated[1]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_do_not_run_as_root_and_copy_what_is_there(path: Path) -> None:
    lines = path.read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1].split(":")[0] not in ("0", "root")
    allowed = {
        line.lstrip("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for line in lines:
        if line.startswith("COPY "):
            words = [word for word in line.split()[1:] if not word.startswith("--")]
            for source in words[:-1]:
                assert source.split("/")[0] in allowed, source
                if source not in ("README.md", "LICENSE", "NOTICE"):
                    assert (ROOT / source).exists(), source


@pytest.mark.parametrize("name", ["requirements-server.txt", "requirements-client.txt"])
def test_pins_are_those_the_tests_ran_with(name: str) -> None:
    tested = pins(ROOT / "constraints.txt")
    differing = {
        package: (version, tested[package])
        for package, version in pins(DOCKER / name).items()
        if package in tested and tested[package] != version
    }
    assert not differing


def test_the_server_image_has_what_serves_here() -> None:
    """But for the embedded tritonserver: its own, and the same fast decoder and resizer."""
    wanted = {
        normalised(re.match(r"[\w.-]+", requirement)[0])
        for requirement in metadata.requires("nima-triton") or ()
        if "extra ==" not in requirement or re.search(r"extra == ['\"]serve['\"]", requirement)
    }
    assert "simplejpeg" in wanted
    present = set(pins(DOCKER / "requirements-server.txt"))
    assert wanted - {"nima-triton", "nvidia-pytriton"} <= present


def test_pip_lines_resolve_and_pin_everything_they_bring(tmp_path: Path) -> None:
    """The index has every pin for the images' Python, they agree, and nothing else comes along."""
    files = [DOCKER / "requirements-server.txt", DOCKER / "requirements-client.txt"]
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--retries=1", "--timeout=20", "--only-binary=:all:"]
    command += ["--python-version=3.12", "--implementation=cp", f"--target={tmp_path / 'none'}"]
    command += [f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 26, 27, 28, 34, 39)]
    command += ["--platform=manylinux2014_x86_64", "--platform=manylinux2010_x86_64"]
    # pip asks whether this test's own Python fits; whether the images' does is asked below.
    command += ["--ignore-requires-python"]
    command += [f"--report={report}", *(f"--requirement={path}" for path in files)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("no package index answers in time")
    if done.returncode != 0 and UNREACHABLE.search(done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    resolved = {normalised(package["name"]): package["version"] for package in found}
    assert resolved == pins(files[0]) | pins(files[1])
    for package in found:
        assert "3.12" in SpecifierSet(package.get("requires_python", "")), package["name"]


@pytest.mark.parametrize(
    ("said", "skips"),
    [
        ("WARNING: Retrying … connection broken by 'ReadTimeoutError(\"… Read timed out. …", True),
        ("HTTPError: 503 Server Error: Service Unavailable for url: https://index/simple/x/", True),
        ("Max retries exceeded … ResponseError('too many 502 error responses')", True),
        ("ERROR: No matching distribution found for numpy==1.26.500", False),
        ("ERROR: Cannot install a==1 and b==2 because … have conflicting dependencies.", False),
        ("HTTPError: 404 Client Error: Not Found for url: https://index/simple/x/", False),
    ],
)
def test_only_the_index_excuses_pip(said: str, skips: bool) -> None:
    assert bool(UNREACHABLE.search(said)) is skips


def test_compose_names_commands_the_entrypoint_has_and_opens_nothing() -> None:
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services: dict[str, Any] = compose["services"]
    assert set(services) == {"engine", "triton", "triton-cpu", "client"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert (DOCKER.parent / service["build"]["dockerfile"]).is_file(), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    for name in ("engine", "triton", "triton-cpu"):
        (command,) = services[name]["command"]
        assert re.search(rf"^ +{command}\)", ENTRYPOINT.read_text(), re.MULTILINE), command
        assert services[name]["shm_size"] == "1gb"
    assert services["triton-cpu"]["environment"]["NIMA_PROFILE"] == "cpu"
    for name in ("engine", "triton"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


class Container:
    """What the entrypoint sees of the image: a PATH with nima, python3 and tritonserver."""

    def __init__(self, folder: Path, repository: Path) -> None:
        from nima_build.server import _arguments
        from nima_build.server._install import lay_out_backends, tritonserver_binary
        from nima_build.server._ports import free_ports

        self.models = Path(shutil.copytree(repository, folder / "models"))
        commands = folder / "bin"
        commands.mkdir()
        (commands / "tritonserver").symlink_to(tritonserver_binary())
        backends = lay_out_backends(folder / "backends")
        self.port, http, metrics = free_ports("127.0.0.1", 3)
        self.environment = {
            **_arguments.environment(),  # the stub must find libpython
            "PATH": f"{commands}{os.pathsep}{BIN}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "NIMA_MODEL_REPOSITORY": str(self.models),
            "NIMA_PROFILE": "embedded",
            "NIMA_GRPC_PORT": str(self.port),
            "NIMA_TRITON_ARGS": (
                f"--backend-directory={backends} --disable-auto-complete-config "
                f"--grpc-address=127.0.0.1 --grpc-port={self.port} --http-address=127.0.0.1 "
                f"--http-port={http} --metrics-address=127.0.0.1 --metrics-port={metrics}"
            ),
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", ENTRYPOINT, *arguments],
            env={**self.environment, **environment},
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip


@pytest.fixture
def container(repository: Path, tmp_path: Path) -> Container:
    pytest.importorskip("pytriton", reason="needs the extra serve")
    return Container(tmp_path, repository)


def test_entrypoint_serves_answers_health_and_ends_on_sigterm(
    container: Container, tmp_path: Path
) -> None:
    assert container.run("health").returncode == 1, "nothing serves yet"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            ["bash", ENTRYPOINT, "serve", "--exit-timeout-secs=60"],
            env=container.environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and server.poll() is None:
            healthy = container.run("health")
            if healthy.returncode == 0:
                break
            time.sleep(0.5)
        assert healthy.returncode == 0, healthy.stderr + (tmp_path / "log").read_text()
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0, (tmp_path / "log").read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def test_entrypoint_refuses_damaged_artefacts(container: Container) -> None:
    graph = container.models / "nima_network" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    done = container.run("serve")
    assert done.returncode == 1
    assert "model.onnx: FAILED" in done.stderr
    assert "not the one SHA256SUMS names" in done.stderr
    (container.models / "SHA256SUMS").unlink()
    done = container.run("serve")
    assert done.returncode == 1
    assert "no SHA256SUMS" in done.stderr


@pytest.mark.parametrize("profile", ["default", "dali"])
def test_entrypoint_asks_for_the_engine_the_gpu_profiles_need(
    container: Container, profile: str
) -> None:
    done = container.run("serve", NIMA_PROFILE=profile)
    assert done.returncode == 1
    assert "build the engine" in done.stderr
    assert "docker run --rm --gpus all" in done.stderr


def stand_ins(container: Container, folder: Path, **commands: str) -> str:
    """A PATH on which scripts take the place of commands of the image."""
    for name, body in commands.items():
        path = folder / "commands" / name.replace("_", "-")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return f"{folder / 'commands'}{os.pathsep}{container.environment['PATH']}"


def test_entrypoint_tells_triton_of_a_version_compatible_engine(
    container: Container, tmp_path: Path
) -> None:
    """With commands that only tell how they were called, in the place of nima and tritonserver."""
    path = stand_ins(container, tmp_path, nima="exit 0", tritonserver='printf "%s\\n" "$@"')
    flag = "--backend-config=tensorrt,version-compatible=true"
    manifest = container.models / "nima_network" / "1" / "model.plan.json"
    for compatible in (False, True):
        options = EngineOptions(version_compatible=compatible)
        manifest.write_bytes(EngineManifest("tensorrt", "", "", "", options).to_json())
        done = container.run("serve", "--log-verbose=0", NIMA_PROFILE="default", PATH=path)
        assert done.returncode == 0, done.stderr
        assert (flag in done.stdout.splitlines()) is compatible
        assert f"--model-repository={container.models}" in done.stdout.splitlines()
        assert "--log-verbose=0" in done.stdout.splitlines()


def test_entrypoint_passes_flags_on_as_they_are(container: Container, tmp_path: Path) -> None:
    path = stand_ins(container, tmp_path, nima="exit 0", tritonserver='printf "%s\\n" "$@"')
    (tmp_path / "--log-file=a").touch()
    flags = "--log-file=* --log-verbose=1\n --exit-on-error=[01]"
    done = subprocess.run(
        ["bash", ENTRYPOINT, "serve"], cwd=tmp_path, capture_output=True, text=True, timeout=90,
        env={**container.environment, "PATH": path, "NIMA_TRITON_ARGS": flags}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == flags.split()


def test_entrypoint_starts_mps_where_it_is_asked_for(container: Container, tmp_path: Path) -> None:
    pipes = tmp_path / "pipes"
    path = stand_ins(
        container, tmp_path, nima="exit 0",
        tritonserver='echo "joins $CUDA_MPS_PIPE_DIRECTORY"',
        nvidia_cuda_mps_control='test -d "$CUDA_MPS_PIPE_DIRECTORY" && echo "daemon $*"',
    )  # fmt: skip

    def serve(**environment: str) -> subprocess.CompletedProcess[str]:
        return container.run(
            "serve", NIMA_PROFILE="default", PATH=path, **environment,
            CUDA_MPS_LOG_DIRECTORY=str(tmp_path / "log"),
        )  # fmt: skip

    done = serve(NIMA_MPS="1", CUDA_MPS_PIPE_DIRECTORY=str(pipes))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"joins {pipes}\n"
    assert "daemon -d" in done.stderr
    assert "daemon" not in serve().stderr
    (tmp_path / "commands" / "nvidia-cuda-mps-control").unlink()
    done = serve(NIMA_MPS="1", CUDA_MPS_PIPE_DIRECTORY=str(pipes))
    assert done.returncode == 1
    assert "NVIDIA MPS cannot be started" in done.stderr
    done = container.run("serve", NIMA_MPS="1", PATH=path)
    assert done.returncode == 1
    assert "NIMA_MPS is for the profile default, not 'embedded'" in done.stderr


def test_entrypoint_refuses_an_unknown_profile_and_runs_other_commands(
    container: Container,
) -> None:
    done = container.run("serve", NIMA_PROFILE="fast")
    assert done.returncode == 1
    assert "default, dali or cpu, not 'fast'" in done.stderr
    assert container.run("echo", "hello").stdout == "hello\n"


def test_entrypoint_build_says_why_it_cannot(container: Container) -> None:
    done = container.run("build")
    if done.returncode == 0:
        pytest.skip("this machine has TensorRT and a GPU")
    assert done.returncode == 1
    assert "nima build:" in done.stderr
