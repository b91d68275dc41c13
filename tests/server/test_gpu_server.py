"""`nima serve --device cuda` up to the point where a GPU is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nima_build.gpu import Gpu, find_gpus
from nima_build.rendering import RenderOptions, render
from nima_build.repository import default_repository, read_config
from nima_build.server import EmbeddedServer, ServerError, ServerOptions, _gpu, _launched
from nima_build.server._arguments import pools
from nima_build.server._rollout import Repository, RolloutError
from nima_client._files import sha256_file

HOPPER = Gpu("NVIDIA H200", "9.0", "580.159.04", 143771)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_repository(), tmp_path / "models"))


def put_package(repository: Path, **facts: object) -> None:
    """A file where the compiled network belongs, and the manifest of one that fits."""
    version = repository / "nima_network" / "1"
    (version / "model.pt2").write_bytes(b"compiled")
    model = json.loads((version / "model.json").read_text())
    manifest = {
        "torch_version": "2.11.0+cu130",
        "device": "cuda",
        "compute_capability": "9.0",
        "checkpoint_sha256": model["checkpoint_sha256"],
        "preprocessing_id": model["preprocessing_id"],
        "image_size": 224,
        "precision": "fp16",
        "max_batch": 128,
        "package_sha256": sha256_file(version / "model.pt2"),
        **facts,
    }
    (version / "model.pt2.json").write_text(json.dumps(manifest))


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "visible_gpus", lambda: {"GPU-a1f0": HOPPER})
    monkeypatch.setattr(_gpu, "is_installed", lambda name: True)


def test_options_name_the_profile_and_refuse_what_cannot_be() -> None:
    assert ServerOptions().profile == "embedded"
    assert ServerOptions(device="cuda").profile == "embedded-gpu"
    assert (ServerOptions().patience, ServerOptions(device="cuda").patience) == (60, 180)
    assert ServerOptions(device="cuda", start_timeout=7).patience == 7
    with pytest.raises(ServerError, match="no device 'tpu': choose cpu or cuda"):
        ServerOptions(device="tpu")
    with pytest.raises(ServerError, match="int8 is for the CPU"):
        ServerOptions(device="cuda", precision="int8")


def test_a_package_that_fits_may_start(repository: Path, with_gpu: None) -> None:
    put_package(repository)
    _gpu.check_gpu(repository)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"compute_capability": "8.9"}, "8.9"),
        ({"checkpoint_sha256": "0" * 64}, "another checkpoint"),
        ({"package_sha256": "0" * 64}, "damaged"),
    ],
)
def test_a_package_that_does_not_fit_is_refused_with_the_command(
    repository: Path, with_gpu: None, facts: dict[str, object], reason: str
) -> None:
    put_package(repository, **facts)
    with pytest.raises(ServerError, match="nima build --target inductor") as refusal:
        _gpu.check_gpu(repository)
    assert reason in str(refusal.value)


def test_a_start_without_a_package_says_how_to_make_one(repository: Path, with_gpu: None) -> None:
    with pytest.raises(ServerError, match=r"no .*model\.pt2.*nima build --target inductor"):
        _gpu.check_gpu(repository)


def test_missing_packages_are_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "visible_gpus", lambda: {"GPU-a1f0": HOPPER})
    monkeypatch.setattr(_gpu, "is_installed", lambda name: name != "cvcuda")
    with pytest.raises(ServerError, match=r"needs cvcuda: pip install 'nima-triton\[serve-gpu\]'"):
        _gpu.check_gpu(repository)


@pytest.mark.skipif(bool(find_gpus()), reason="this machine has a GPU")
def test_without_a_gpu_the_command_says_so_in_one_line() -> None:
    command = [sys.executable, "-m", "nima_client.cli.main", "serve", "--device", "cuda"]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    done = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("nima serve: there is no NVIDIA GPU here")


def test_the_rendered_repository_carries_the_package_and_keeps_its_instances(
    repository: Path, tmp_path: Path
) -> None:
    put_package(repository)
    target = tmp_path / "rendered"
    render(repository, target, RenderOptions(profile="embedded-gpu"))
    network = read_config(target / "nima_network" / "config.pbtxt")
    decoder = read_config(target / "nima_preprocess" / "config.pbtxt")
    assert network.default_model_filename == decoder.default_model_filename == "gpu_model.py"
    assert (decoder.instance_group[0].count, network.instance_group[0].count) == (6, 2)
    assert "gate" not in decoder.parameters
    assert (target / "nima_network" / "1" / "model.pt2.json").is_file()
    assert (target / "nima_network" / "1" / "compiled.py").is_file()


def test_a_rollout_on_a_gpu_asks_for_the_package_of_the_new_network(
    repository: Path, tmp_path: Path, with_gpu: None
) -> None:
    put_package(repository)
    served = tmp_path / "served"
    render(repository, served, RenderOptions(profile="embedded-gpu"))
    (repository / "nima_network" / "1" / "model.pt2").write_bytes(b"of another build")
    with pytest.raises(RolloutError, match=r"damaged.*nima build --target inductor"):
        Repository(served, None, "token").roll_out(repository)
    assert [folder.name for folder in (served / "nima_network").glob("[0-9]*")] == ["1"]


def test_a_start_asks_nvidia_smi_once_and_a_restart_anew(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU may be lost meanwhile. The command ends the start: tritonserver finds no GPU here."""
    smi, asked = tmp_path / "bin" / "nvidia-smi", tmp_path / "asked"
    smi.parent.mkdir()
    smi.write_text(
        f"#!/bin/sh\necho >>{asked}\necho '0, GPU-a1f0, NVIDIA H200, 9.0, 580.159.04, 143771'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(_gpu, "is_installed", lambda name: True)
    put_package(repository)
    server = EmbeddedServer(ServerOptions(model_repository=repository, device="cuda"))
    given: list[list[str]] = []

    def end(command: list[str], *_: object) -> None:
        given.append(command)
        raise OSError("enough")

    monkeypatch.setattr(_launched, "begin_group", end)
    stop = server.stop
    monkeypatch.setattr(server, "stop", lambda: None)
    with pytest.raises(ServerError, match="enough"):
        server.start()
    assert len(asked.read_text().splitlines()) == 1
    with pytest.raises(ServerError, match="enough"):
        server.launch()
    assert len(asked.read_text().splitlines()) == 2
    stop()
    assert all(set(pools(1)) <= set(command) for command in given)
