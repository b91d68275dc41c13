"""The package of PyTorch: compiled here for the CPU by the code that compiles it for a GPU.

What is shown: export, compilation, refusals, and the Triton model in the real tritonserver. What is
not: half precision at speed, CUDA graphs, GPU memory (`make gpu-check` has them).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nima_build import inductor
from nima_build.checksums import write_checksums
from nima_build.cli.build import app
from nima_build.graph import HalfScoringGraph, ScoringGraph
from nima_build.inductor import PackageOptions, build_package, check_package_here, open_package
from nima_build.metadata import ArtefactError, ModelMetadata
from nima_build.paths import BUNDLED_CHECKPOINT
from nima_build.repository import default_repository, load_module
from nima_build.tensorrt_api import EngineError
from nima_build.verify import _inductor_stage
from nima_client._package import PackageManifest, package_manifest_path
from nima_training.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.skipif(not BUNDLED_CHECKPOINT.is_dir(), reason="no bundled checkpoint here"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles with g++"),
]
OPTIONS = PackageOptions("fp32", max_batch=8)
CLI = ["--target", "inductor", "--device", "cpu", "--precision", "fp32", "--max-batch", "8"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree's repository, the bundled network compiled into it by the command."""
    target = tmp_path_factory.mktemp("inductor") / "models"
    ignored = shutil.ignore_patterns("*.plan*", "*.pt2*", "__pycache__")
    shutil.copytree(default_repository(), target, ignore=ignored)
    done = CliRunner().invoke(app, [*CLI, "--onnx", str(network_of(target) / "model.onnx")])
    assert done.exit_code == 0, done.output
    assert "built" in done.output
    assert "fp32, batch 1 to 8, PyTorch" in done.output
    return target


def network_of(models: Path) -> Path:
    return models / "nima_network" / "1"


@pytest.fixture
def network(models: Path, tmp_path: Path) -> Path:
    """A private copy of the network's folder."""
    return Path(shutil.copytree(network_of(models), tmp_path / "network"))


def build(network: Path, options: PackageOptions = OPTIONS, **how: Any) -> bool:
    graph, package = network / "model.onnx", network / "model.pt2"
    return build_package(BUNDLED_CHECKPOINT, graph, package, options, device="cpu", **how)[1]


def reference(pixels: np.ndarray) -> np.ndarray:
    """Scores ``[N, 12]`` of the FP32 graph in PyTorch."""
    loaded = load_checkpoint(BUNDLED_CHECKPOINT)
    graph = ScoringGraph(loaded.model, loaded.spec)
    with torch.no_grad():
        return torch.cat(graph(torch.from_numpy(pixels)), dim=1).numpy()


def test_scores_are_those_of_the_graph(models: Path, pixels: np.ndarray) -> None:
    """One image, pieces, and more images than the largest batch."""
    compiled = open_package(network_of(models) / "model.pt2", "cpu")
    many = np.concatenate([pixels, pixels[::-1], pixels])
    expected = reference(many)
    np.testing.assert_allclose(compiled.score(many[:1]), expected[:1], atol=2e-5)
    pieces = [torch.from_numpy(part) for part in (many[:1], many[1:4], many[4:7])]
    np.testing.assert_allclose(compiled(pieces), expected[:7], atol=2e-5)
    pieces += [torch.from_numpy(many[7:])]
    np.testing.assert_allclose(compiled(pieces), expected, atol=2e-5)
    np.testing.assert_allclose(compiled.score(many[:2]), expected[:2], atol=2e-5)


def test_batches_are_filled_up_to_the_size_of_a_graph(
    models: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of a fixed size stand in for CUDA graphs: images of earlier batches do no harm."""
    compiled = open_package(network_of(models) / "model.pt2", "cpu")
    assert compiled.sizes == [1, 2, 4, 8]
    replayed: list[int] = []

    def graph(size: int) -> tuple[SimpleNamespace, torch.Tensor]:
        columns = torch.zeros(size, 12)

        def replay() -> None:
            replayed.append(size)
            columns.copy_(compiled._launch(size))

        return SimpleNamespace(replay=replay), columns

    monkeypatch.setattr(compiled, "_graphs", {size: graph(size) for size in compiled.sizes})
    expected = reference(pixels)
    for count in (5, 3, 1, 2):
        got = compiled.score(pixels[-count:])
        np.testing.assert_allclose(got, expected[-count:], atol=2e-5)
    assert replayed == [8, 4, 1, 2]


def test_no_more_is_prepared_than_will_come(models: Path, pixels: np.ndarray) -> None:
    package = network_of(models) / "model.pt2"
    assert open_package(package, "cpu", max_batch=100).sizes == [1, 2, 4, 8]
    compiled = open_package(package, "cpu", max_batch=4)
    assert compiled.sizes == [1, 2, 4]
    np.testing.assert_allclose(compiled.score(pixels), reference(pixels), atol=2e-5)


def test_half_precision_is_near(pixels: np.ndarray) -> None:
    loaded = load_checkpoint(BUNDLED_CHECKPOINT)
    graph = HalfScoringGraph(loaded.model, loaded.spec)
    kinds = {value.dtype for name, value in graph.named_parameters() if "network" in name}
    assert kinds == {torch.float16}
    with torch.no_grad():
        scores = graph(torch.from_numpy(pixels))
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), reference(pixels), atol=0.01)


def test_package_is_kept_until_something_changes(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(_graph: Any, _manifest: Any, path: Path, _progress: Any = None) -> None:
        path.write_bytes(b"package")

    monkeypatch.setattr(inductor, "compile_graph", compiled)
    package, before = network / "model.pt2", (network / "model.pt2").read_bytes()
    assert not build(network)
    assert package.read_bytes() == before
    assert build(network, force=True)
    assert not build(network)
    assert build(network, PackageOptions("fp32", max_batch=16))
    package.write_bytes(b"damaged")
    assert build(network, PackageOptions("fp32", max_batch=16))
    manifest = PackageManifest.load(package)
    assert (manifest.device, manifest.compute_capability, manifest.max_batch) == ("cpu", "cpu", 16)
    assert manifest.torch_version == torch.__version__
    assert manifest.checkpoint_sha256 == load_checkpoint(BUNDLED_CHECKPOINT).meta["weights_sha256"]
    monkeypatch.setattr(torch, "__version__", "2.9.0")
    assert build(network, PackageOptions("fp32", max_batch=16))
    package.unlink()
    package.mkdir()
    monkeypatch.setattr(inductor, "compile_graph", None)
    with pytest.raises(IsADirectoryError):
        build(network)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"checkpoint_sha256": "0" * 64}, "built from another checkpoint than model.onnx"),
        ({"preprocessing_id": "0" * 16}, "built for another preprocessing"),
        ({"torch_version": "2.8.0"}, "built with PyTorch 2.8.0, here is "),
        ({"compute_capability": "9.0"}, "built for compute capability 9.0, not for the CPU"),
        ({"package_sha256": "0" * 64}, "the file is damaged"),
        ({"format": 99}, "it has format 99"),
        ({"max_batch": 8, "surprise": 1}, "is unreadable"),
    ],
)
def test_package_that_does_not_fit_is_refused(
    network: Path, changes: dict[str, Any], reason: str
) -> None:
    package = network / "model.pt2"
    metadata = ModelMetadata.load(network / "model.json")
    check_package_here(package, metadata, device="cpu")
    path = package_manifest_path(package)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for refused in (
        lambda: check_package_here(package, metadata, device="cpu"),
        lambda: open_package(package, "cpu"),
    ):
        with pytest.raises(ArtefactError, match=reason) as caught:
            refused()
        assert "`nima build --target inductor`" in str(caught.value)
    result = CliRunner().invoke(app, [*CLI, "--check", "--onnx", str(network / "model.onnx")])
    assert result.exit_code == 1
    assert result.output.startswith("nima build: ")
    assert result.output.count("\n") == 1


def test_another_checkpoint_than_that_of_the_graph_is_refused(
    checkpoint: Path, network: Path
) -> None:
    before = (network / "model.pt2").read_bytes()
    arguments = [*CLI, "--onnx", str(network / "model.onnx"), "--checkpoint"]
    result = CliRunner().invoke(app, [*arguments, str(checkpoint)])
    assert result.exit_code == 1
    assert "was exported from another checkpoint than" in result.output
    missing = CliRunner().invoke(app, [*arguments, str(checkpoint / "none")])
    assert "name one with --checkpoint" in missing.output
    assert (network / "model.pt2").read_bytes() == before


def test_without_a_gpu_or_a_compiler_one_line_says_so(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    graph = str(network / "model.onnx")
    result = CliRunner().invoke(app, ["--target", "inductor", "--onnx", graph])
    assert result.exit_code == 1
    assert "finds no CUDA device" in result.output
    assert result.output.count("\n") == 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        build(network, force=True)


def test_a_temporary_folder_with_a_space_is_no_obstacle(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spaced))
    # As PyTorch itself sets it when it is imported.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(spaced / "torchinductor"))
    assert build(network, force=True)
    assert tempfile.gettempdir() == str(spaced)


def test_what_a_killed_build_left_in_the_temporary_folder_is_removed(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that runs, and what is somebody's, stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    code = (
        "import pathlib, time; from nima_build.paths import own_folder\n"
        "with own_folder('nima-build-', 'model.pt2') as folder:\n"
        "    (folder / 'model.pt2').touch(); print(folder, flush=True); time.sleep(60)"
    )
    builds = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        left, running = (Path(build.stdout.readline().strip()) for build in builds)
        builds[0].kill()
        builds[0].wait()
        others = folder / "nima-build-20261128"
        (others / "notes").mkdir(parents=True)
        past = time.time() - 3600
        for made in (left, running, others):
            os.utime(made, (past, past))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert build(network, force=True)
        assert not left.exists()
        assert (running / "model.pt2").exists()
        assert others.exists()
    finally:
        for process in builds:
            process.kill()
            process.communicate()
    assert not [path for path in folder.glob("nima-build-*") if path not in (running, others)]


def test_command_keeps_checks_and_names_its_package(models: Path) -> None:
    arguments = [*CLI, "--onnx", str(network_of(models) / "model.onnx")]
    again = CliRunner().invoke(app, arguments)
    assert "up to date" in again.output, again.output
    checked = CliRunner().invoke(app, [*arguments, "--check"])
    assert checked.exit_code == 0
    assert "fits (PyTorch" in checked.output
    # An image or a clone gets SHA256SUMS and no engine, and must not miss one.
    assert "pt2" not in (models / "SHA256SUMS").read_text()
    write_checksums(models)
    assert "pt2" not in (models / "SHA256SUMS").read_text()
    small = CliRunner().invoke(app, [*arguments, "--max-batch", "1"])
    assert "max_batch must be at least 2" in small.output


def test_parity_stage(network: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = ModelMetadata.load(network / "model.json")
    expected = reference(pixels)[:, :10]
    names = list("abcde")

    def status() -> tuple[str, str]:
        result = _inductor_stage(network, metadata, names, pixels, expected)
        return result.status, result.note

    assert status() == ("pass", "cpu")
    path = package_manifest_path(network / "model.pt2")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "device": "cuda", "compute_capability": "9.0"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert status()[0] == "skip"
    path.write_text(json.dumps({**values, "checkpoint_sha256": "0" * 64}))
    assert status()[0] == "fail"
    (network / "model.pt2").unlink()
    assert status() == ("skip", "no package (`nima build --target inductor`)")


class Tensor:
    """As pb_utils has it; ``device`` is where its pixels are said to be."""

    def __init__(self, name: str, array: np.ndarray, device: str = "cpu") -> None:
        self._name, self._array, self._device = name, array, device

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return self._device == "cpu"

    def as_numpy(self) -> np.ndarray:
        assert self.is_cpu()
        return self._array

    def to_dlpack(self) -> Any:
        return torch.utils.dlpack.to_dlpack(torch.from_numpy(self._array))


class Logger:
    lines: list[str]

    @classmethod
    def log_error(cls, line: str) -> None:
        cls.lines.append(line)

    log_warn = log_error


class TritonError:
    INTERNAL = "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@pytest.fixture
def gpu_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    Logger.lines = []

    def response(output_tensors: Any = None, error: Any = None) -> SimpleNamespace:
        return SimpleNamespace(tensors=output_tensors, error=error)

    names = {
        "get_input_tensor_by_name": lambda request, _name: request,
        "Tensor": Tensor,
        "InferenceResponse": response,
        "TritonError": TritonError,
        "TritonModelException": RuntimeError,
        "Logger": Logger,
    }
    module = ModuleType("triton_python_backend_utils")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.syspath_prepend(network_of(models))
    threads = torch.get_num_threads()
    yield load_module(network_of(models) / "gpu_model.py")
    sys.modules.pop("compiled", None)
    torch.set_num_threads(threads)


def arguments(folder: Path, **parameters: str) -> dict[str, str]:
    values = {key: {"string_value": value} for key, value in parameters.items()}
    return {
        "model_config": json.dumps({"max_batch_size": 32, "parameters": values}),
        "model_name": "nima_network",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_repository": str(folder.parent),
        "model_version": folder.name,
    }


def test_model_answers_merged_requests_and_outlives_a_failure(
    gpu_model: ModuleType, models: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gpu_model.TritonPythonModel()
    model.initialize(arguments(network_of(models)))
    parts = [pixels[:1], pixels[1:4], pixels[4:], pixels, pixels[:2]]
    devices = ["cpu", "gpu", "cpu", "cpu", "gpu"]
    requests = [Tensor("PIXELS", part, device) for part, device in zip(parts, devices)]
    for answered in (requests[:3], requests):
        responses = model.execute(answered)
        assert len(responses) == len(answered)
        for response, part in zip(responses, parts):
            assert response.error is None
            got = {tensor.name(): tensor.as_numpy() for tensor in response.tensors}
            assert list(got) == ["DISTRIBUTION", "MEAN", "STD"]
            assert all(array.flags.c_contiguous for array in got.values())
            expected = reference(part)
            for name, columns in (("DISTRIBUTION", slice(10)), ("MEAN", [10]), ("STD", [11])):
                np.testing.assert_allclose(got[name], expected[:, columns], atol=2e-5)
    with monkeypatch.context() as patched:

        def lost(_pieces: Any) -> None:
            raise RuntimeError("CUDA error: the device\nfell off the bus")

        patched.setattr(model, "_network", lost)
        failed = model.execute(requests)
    said = "scoring failed: RuntimeError: CUDA error: the device fell off the bus"
    assert [(r.error.message, r.error.code) for r in failed] == [(said, "INTERNAL")] * 5
    assert Logger.lines == [said]
    assert all(response.error is None for response in model.execute(requests))


def test_model_without_a_package_that_fits_does_not_start(
    gpu_model: ModuleType, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**parameters: str) -> None:
        gpu_model.TritonPythonModel().initialize(arguments(network, **parameters))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="finds no CUDA device"):
        start(device="cuda:0")
    metadata = json.loads((network / "model.json").read_text())
    metadata["checkpoint_sha256"] = "0" * 64
    (network / "model.json").write_text(json.dumps(metadata))
    with pytest.raises(RuntimeError, match=r"another checkpoint .* `nima build --target inductor`"):
        start()
    (network / "model.pt2").unlink()
    with pytest.raises(RuntimeError, match=r"no .*model\.pt2: .* `nima build --target inductor`"):
        start()


def test_tritonserver_serves_it(
    tritonserver: Any, models: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    """The real Python backend: requests sent at once, merged and answered each by itself.

    Four images from the host are so many that they should have come on the GPU.
    """
    import tritonclient.grpc as triton_grpc

    copy = tmp_path / "copy"
    shutil.copytree(models / "nima_network", copy / "nima_network")
    text = (copy / "nima_network" / "configs" / "embedded.pbtxt").read_text()
    text = text.replace("count: 2", "count: 1").replace("max_batch_size: 32", "max_batch_size: 8")
    text += (
        'default_model_filename: "gpu_model.py"\n'
        "dynamic_batching { max_queue_delay_microseconds: 300000 }\n"
        'parameters { key: "host_below" value { string_value: "4" } }\n'
    )
    (copy / "nima_network" / "config.pbtxt").write_text(text)
    parts = [pixels[:1], pixels[1:3], pixels[3:]]

    def ask(part: np.ndarray) -> np.ndarray | str:
        tensor = triton_grpc.InferInput("PIXELS", part.shape, "UINT8")
        tensor.set_data_from_numpy(part)
        with triton_grpc.InferenceServerClient(server.grpc_url) as client:
            try:
                answer = client.infer("nima_network", [tensor], client_timeout=60)
            except triton_grpc.InferenceServerException as error:
                return f"{error.status()} {error.message()}"
        names = ("DISTRIBUTION", "MEAN", "STD")
        return np.concatenate([answer.as_numpy(name) for name in names], axis=1)

    with tritonserver(copy, tmp_path / "server") as server:
        assert "Started GRPCInferenceService" in server.log, server.log[-3000:]
        with ThreadPoolExecutor(len(parts) + 1) as pool:
            *answers, lost = pool.map(ask, [*parts, pixels[:4]])
        alone = ask(pixels[:4])
    np.testing.assert_allclose(np.concatenate(answers), reference(pixels), atol=2e-5)
    for refusal in (lost, alone):
        assert isinstance(refusal, str)
        assert "UNAVAILABLE" in refusal
        assert "the pixels did not arrive: send it again" in refusal


def test_gpu_check_step_measures_it(
    models: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nima_build.gpu_check import context as checking
    from nima_build.gpu_check import network as network_steps

    network = network_of(models)
    metadata = ModelMetadata.load(network / "model.json")
    context = checking.Context(network, metadata, list("abcde"), [], pixels, tmp_path)
    for name in ("model.pt2", "model.pt2.json"):
        shutil.copy(network / name, tmp_path)
    monkeypatch.setattr(checking, "SECONDS", 0.1)
    monkeypatch.setattr(network_steps, "PackageOptions", lambda _precision: OPTIONS)
    report = network_steps.measure_inductor(context, BUNDLED_CHECKPOINT, "cpu", (1, 4))
    assert report["parity"]["status"] == "pass"
    assert report["failed"] is False
    assert report["images_per_second_by_batch"]["4"] > 0
