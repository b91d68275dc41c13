"""A checkpoint with random weights whose scores nevertheless differ, and its export."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the build tests need the extras train and build")
pytest.importorskip("onnx", reason="the build tests need the extra build")


def lively_network(backbone: str = "mobilenet_v2") -> torch.nn.Module:
    """A network with random weights that tells images apart, with logits a few units apart.

    Its BatchNorm statistics are taken from images: with the initial ones the signal dies out
    within a few layers and any two graphs would agree.
    """
    from nima_training.models import BACKBONES, create_model

    torch.manual_seed(0)
    model = create_model(backbone, weights="none", dropout=0.0)
    size = BACKBONES[backbone].input_size
    level = torch.rand(8, 3, 1, 1)
    images = (level + torch.rand(8, 1, 1, 1) * torch.rand(8, 3, size, size)) * 2 - 1
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.normal_(module.bias, std=0.2)
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.normal_(head.weight, std=1.0)
    with torch.no_grad():
        model.train()(images)
        model.eval()
        head.weight.div_(model(images).std(dim=0).mean())
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MobileNet v2 checkpoint directory."""
    from nima_client.preprocess import PreprocessSpec
    from nima_training.checkpoint import save_checkpoint

    return save_checkpoint(
        tmp_path_factory.mktemp("checkpoint"),
        lively_network(),
        {
            "name": "random_mobilenet_v2",
            "backbone": "mobilenet_v2",
            "dropout": 0.0,
            "preprocessing": PreprocessSpec().to_dict(),
            "reference": {"set": "none", "quantiles": [float(q) for q in np.linspace(1, 10, 101)]},
        },
    )


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the ``model.onnx`` and ``model.json`` of that checkpoint."""
    from nima_build.export import export_checkpoint

    folder = tmp_path_factory.mktemp("exported")
    export_checkpoint(checkpoint, folder)
    return folder


@pytest.fixture
def pixels() -> np.ndarray:
    """Five images uint8 ``[5, 224, 224, 3]``: noise, flat ones and a gradient."""
    random = np.random.default_rng(1)
    batch = random.integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    batch[1], batch[2] = 0, 255
    batch[3] = np.linspace(0, 255, 224, dtype=np.uint8)[:, None, None]
    return batch


@pytest.fixture(scope="session")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree's model repository with the random model exported into it."""
    from nima_build.export import export_to_repository

    source = Path(__file__).parents[2] / "model_repository"
    built = ("*.plan*", "*.pt2*", "*.onnx", "model.json", "SHA256SUMS")
    ignored = shutil.ignore_patterns(*built, "__pycache__")
    target = tmp_path_factory.mktemp("repository") / "models"
    shutil.copytree(source, target, ignore=ignored)
    export_to_repository(checkpoint, target)
    return target


@dataclass
class Tritonserver:
    """A bare tritonserver: what it said until it served or gave up, and where it answers."""

    log: str
    grpc_url: str


@contextmanager
def run_tritonserver(
    repository: Path, folder: Path, profile: str = "default", **environment: str
) -> Iterator[Tritonserver]:
    """Let the embedded tritonserver load a copy of a repository, as the images start theirs."""
    from nima_build.server import _arguments
    from nima_build.server._install import lay_out_backends, tritonserver_binary
    from nima_build.server._ports import free_ports

    shutil.copytree(repository, folder / "models")
    lay_out_backends(folder / "backends")
    grpc, http, metrics = free_ports("127.0.0.1", 3)
    command = [
        str(tritonserver_binary()),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics}",
        "--exit-timeout-secs=1",
    ]
    if profile != "default":
        command.append(f"--model-config-name={profile}")
    values = {**_arguments.environment(), **environment}
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=values)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if "Started GRPCInferenceService" in log.read_text(errors="replace"):
                break
            time.sleep(0.1)
        yield Tritonserver(log.read_text(errors="replace"), f"127.0.0.1:{grpc}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def tritonserver() -> Callable[..., AbstractContextManager[Tritonserver]]:
    """Start a bare tritonserver on a repository: see :func:`run_tritonserver`."""
    pytest.importorskip("pytriton", reason="needs the extra serve")
    return run_tritonserver
