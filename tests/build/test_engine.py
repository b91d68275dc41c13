"""Engines: every shipped backbone compiles in TensorRT for RTX; caching; refusals.

TensorRT for RTX compiles on a CPU-only machine with the builder and ONNX parser that TensorRT has,
so a graph TensorRT would refuse fails here. Its engines are not run: there is no GPU.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner

from nima_build import engine, gpu, tensorrt_api
from nima_build.cli.build import app
from nima_build.engine import build_engine, check_engine_here, compile_graph
from nima_build.engine_manifest import (
    EngineManifest,
    EngineMismatch,
    EngineOptions,
    check_engine,
    manifest_path,
)
from nima_build.export import to_onnx
from nima_build.half import to_fp16
from nima_build.metadata import ArtefactError
from nima_build.tensorrt_api import EngineError, load_runtime
from nima_client.preprocess import PreprocessSpec
from nima_training.models import BACKBONES, create_model

# Half a gigabyte of weights, nearly all of it in two layers: 5 GB of memory and most of a minute.
LARGE = {"vgg16"}
# Its graph has thousands of shape operations; what is served is the FP16 one.
HALF_ONLY = {"swin_t"}


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return load_runtime("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in sorted(BACKBONES)
    ],
)
def test_every_backbone_compiles(rtx: Any, backbone: str) -> None:
    size = BACKBONES[backbone].input_size
    network = create_model(backbone, weights="none").eval()
    full = to_onnx(network, PreprocessSpec(resize_size=size, crop_size=size))
    half = to_fp16(full)
    options = EngineOptions(opt_batch=4, max_batch=8)
    for graph in (half,) if backbone in HALF_ONLY else (full, half):
        plan = compile_graph(rtx, graph.SerializeToString(), options, compute_capability="8.9")
        assert len(plan) > 1_000_000


def test_vgg16_compiles_with_its_wide_layers_narrowed(rtx: Any) -> None:
    """Every operator of VGG16, without the 4096-wide layers that make it slow to build."""
    network = create_model("vgg16", weights="none").eval()
    classifier = network.classifier
    assert isinstance(classifier, torch.nn.Sequential)
    classifier[0] = torch.nn.Linear(25088, 64)
    classifier[3] = torch.nn.Linear(64, 64)
    classifier[6] = torch.nn.Linear(64, 10)
    half = to_fp16(to_onnx(network, PreprocessSpec()))
    options = EngineOptions(opt_batch=4, max_batch=8)
    plan = compile_graph(rtx, half.SerializeToString(), options, compute_capability="8.9")
    assert len(plan) > 1_000_000


def test_profile_and_types_of_the_network_are_ours(rtx: Any, exported: Path) -> None:
    """What TensorRT makes of the FP16 graph: UINT8 in, FP32 out, an FP32 stem, the rest in FP16."""
    logger = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(logger).create_network(0)
    half = to_fp16(onnx.load(exported / "model.onnx"))
    assert rtx.OnnxParser(network, logger).parse(half.SerializeToString())
    assert network.get_input(0).dtype == rtx.DataType.UINT8
    assert tuple(network.get_input(0).shape) == (-1, 224, 224, 3)
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert {o.name: (o.dtype, tuple(o.shape)) for o in outputs} == {
        "DISTRIBUTION": (rtx.DataType.FLOAT, (-1, 10)),
        "MEAN": (rtx.DataType.FLOAT, (-1, 1)),
        "STD": (rtx.DataType.FLOAT, (-1, 1)),
    }
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]
    assert convolutions
    types = [layer.get_output(0).dtype for layer in convolutions]
    assert types[:2] == [rtx.DataType.FLOAT] * 2
    assert set(types[2:]) == {rtx.DataType.HALF}


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_a_timing_cache_that_a_killed_build_left_half_written_is_removed(
    rtx: Any, exported: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "timing.cache"
    left, in_use = (tmp_path / f".timing.cache.{name}.partial" for name in ("abcdefgh", "ijklmnop"))
    left.touch()
    graph, options = to_fp16(onnx.load(exported / "model.onnx")), EngineOptions()
    with in_use.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for _ in range(2):
            compile_graph(
                rtx, graph.SerializeToString(), options,
                compute_capability="8.9", timing_cache=cache,
            )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {cache.name, in_use.name}
    assert cache.read_bytes()


def test_engine_is_built_once_and_rebuilt_when_something_changed(
    rtx: Any, exported: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model.onnx"
    shutil.copyfile(exported / "model.onnx", source)
    plan = tmp_path / "model.plan"
    seen: list[tuple[str, int, int]] = []

    def build(max_batch: int = 32) -> bool:
        _, built = build_engine(
            source,
            plan,
            EngineOptions(max_batch=max_batch),
            target="tensorrt-rtx",
            compute_capability="8.9",
            progress=lambda *step: seen.append(step),
        )
        return built

    assert build()
    assert seen, "TensorRT reported no progress"
    manifest = check_engine(plan, compute_capabilities=["8.9"], runtime_version=rtx.__version__)
    assert manifest.runtime == "tensorrt_rtx"
    assert manifest.options.max_batch == 32
    assert not build()
    assert build(16)
    plan.write_bytes(plan.read_bytes()[:-1])
    assert build(16), "a damaged engine must be rebuilt"
    model = onnx.load(source)
    model.doc_string = "another model"
    onnx.save(model, source)
    assert build(16)


def test_graph_tensorrt_refuses_is_an_error_that_names_the_node(rtx: Any, exported: Path) -> None:
    """UINT8 into a Transpose: valid ONNX, which TensorRT does not take."""
    model = onnx.load(exported / "model.onnx")
    cast, transpose = model.graph.node[0], model.graph.node[1]
    assert (cast.op_type, transpose.op_type) == ("Cast", "Transpose")
    transpose.input[0], cast.input[0] = "PIXELS", "transposed"
    cast.output[0], transpose.output[0] = transpose.output[0], "transposed"
    nodes = [transpose, cast, *model.graph.node[2:]]
    swapped = onnx.ModelProto()
    swapped.CopyFrom(model)
    del swapped.graph.node[:]
    swapped.graph.node.extend(nodes)
    onnx.checker.check_model(swapped)
    with pytest.raises(EngineError, match=r"TensorRT|UINT8"):
        compile_graph(rtx, swapped.SerializeToString(), EngineOptions(), compute_capability="8.9")


def _manifest(plan: Path, **changes: Any) -> EngineManifest:
    from nima_client._files import sha256_file

    plan.write_bytes(b"engine")
    manifest = EngineManifest(
        runtime="tensorrt",
        runtime_version="10.9.0.34",
        compute_capability="8.9",
        onnx_sha256="a" * 64,
        options=EngineOptions(),
        engine_sha256=sha256_file(plan),
        gpu="NVIDIA L4",
    )
    manifest = replace(manifest, **changes)
    manifest_path(plan).write_bytes(manifest.to_json())
    return manifest


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"onnx_sha256": "b" * 64}, "another model.onnx"),
        ({"runtime_version": "10.13.2.6"}, "built with TensorRT 10.9.0.34, here is 10.13.2.6"),
        ({"runtime_version": "10.9.0.35"}, "built with TensorRT 10.9.0.34, here is 10.9.0.35"),
        ({"runtime": "tensorrt_rtx"}, "an engine of tensorrt, not of tensorrt_rtx"),
        ({"compute_capabilities": ["8.9", "9.0"]}, "8.9, the GPU here has 9.0"),
        ({"batch": 64}, "batches of 1 to 32, the model config promises 1 to 64"),
    ],
)
def test_mismatched_engine_is_refused(tmp_path: Path, machine: dict, reason: str) -> None:
    plan = tmp_path / "model.plan"
    _manifest(plan)
    fitting = {"onnx_sha256": "a" * 64, "runtime_version": "10.9.0.34"}
    check_engine(plan, **fitting, compute_capabilities=["8.9"])
    with pytest.raises(EngineMismatch, match=reason) as caught:
        check_engine(plan, **machine)
    assert "nima build --target tensorrt" in str(caught.value)


@pytest.mark.parametrize(
    ("built", "here", "loads"),
    [
        ("10.9.0.34", "10.9.0.34.post1", True),
        ("10.9.0.34", "10.13.0.1", True),
        ("10.9.0.34", "10.3.0.1", False),
        ("10.9.0.34", "11.4.0.106", True),
        ("11.0.0.114", "12.0.0.1", False),
    ],
)
def test_version_compatible_engines_are_accepted_where_tensorrt_loads_them(
    tmp_path: Path, built: str, here: str, loads: bool
) -> None:
    """Later versions of the same major; across majors only 10 on 11 (TensorRT support matrix)."""
    plan = tmp_path / "model.plan"
    _manifest(plan, runtime_version=built, options=EngineOptions(version_compatible=True))
    if loads:
        check_engine(plan, runtime_version=here)
    else:
        with pytest.raises(EngineMismatch):
            check_engine(plan, runtime_version=here)


def test_hardware_compatible_engines_are_accepted_from_ampere_on(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    _manifest(plan, options=EngineOptions(hardware_compatible=True))
    check_engine(plan, compute_capabilities=["9.0", "8.0", "12.0"])
    with pytest.raises(EngineMismatch):
        check_engine(plan, compute_capabilities=["7.5"])


def test_damaged_or_missing_engine_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    with pytest.raises(ArtefactError, match=r"no .*model\.plan: build the engine"):
        check_engine(plan)
    _manifest(plan)
    plan.write_bytes(b"other")
    with pytest.raises(EngineMismatch, match="damaged"):
        check_engine(plan)
    (tmp_path / "model.plan.json").write_text(json.dumps({"format": "?"}))
    with pytest.raises(ArtefactError, match="unreadable"):
        check_engine(plan)


def test_without_gpu_or_tensorrt_one_line_says_so(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, whatever this machine has
    assert gpu.find_gpus() == []
    arguments = ["--onnx", str(exported / "model.onnx"), "-o", str(tmp_path / "model.plan")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("nima build: ")
    assert result.output.count("\n") == 1
    assert "TensorRT is not installed" in result.output or "no NVIDIA GPU" in result.output
    assert not (tmp_path / "model.plan").exists()
    # With TensorRT, as the code path goes on from there:
    with pytest.raises(EngineError, match="no NVIDIA GPU found"):
        engine._capability("tensorrt", None, None)


def nvidia_smi(folder: Path, rows: str) -> None:
    """A command that answers as nvidia-smi does."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{rows}END\n")
    command.chmod(0o755)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA L4", "NVIDIA A100-SXM4-40GB"]),
        ("1,0", ["NVIDIA A100-SXM4-40GB", "NVIDIA L4"]),
        ("GPU-b7", ["NVIDIA A100-SXM4-40GB"]),
        ("0,5,1", ["NVIDIA L4"]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_are_those_cuda_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]
) -> None:
    nvidia_smi(
        tmp_path,
        "0, GPU-a1f0, NVIDIA L4, 8.9, 575.57.08, 23034\n"
        "1, GPU-b7c2, NVIDIA A100-SXM4-40GB, 8.0, 575.57.08, 40960\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = gpu.find_gpus()
    assert [one.name for one in found] == names
    if visible is None:
        assert found[0] == gpu.Gpu("NVIDIA L4", "8.9", "575.57.08", 23034)


def test_check_asks_for_a_gpu_and_for_what_triton_serves(
    rtx: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT for RTX stands in for TensorRT as the module that is asked for its version."""
    monkeypatch.setattr(engine, "load_runtime", lambda _target: rtx)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plan, graph = tmp_path / "model.plan", exported / "model.onnx"
    build_engine(graph, plan, target="tensorrt-rtx", compute_capability="8.9")
    nvidia_smi(tmp_path, "")
    with pytest.raises(EngineError, match=r"no NVIDIA GPU found .* `--gpus all`"):
        check_engine_here(plan, graph)
    nvidia_smi(tmp_path, "0, GPU-a1f0, NVIDIA L4, 8.9, 575.57.08, 23034\n")
    with pytest.raises(EngineMismatch, match="an engine of tensorrt_rtx, not of tensorrt"):
        check_engine_here(plan, graph)
    manifest = replace(EngineManifest.load(plan), runtime="tensorrt")
    manifest_path(plan).write_bytes(manifest.to_json())
    assert check_engine_here(plan, graph) == manifest
    nvidia_smi(tmp_path, "0, GPU-a1f0, NVIDIA H100 PCIe, 9.0, 575.57.08, 81559\n")
    with pytest.raises(EngineMismatch, match=r"8\.9, the GPU here has 9\.0.*nima build"):
        check_engine_here(plan, graph)


def test_bindings_of_another_version_than_the_library_are_refused(
    rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tensorrt_api.library_version("tensorrt-rtx")
    assert ".".join(map(str, library)) == rtx.__version__
    monkeypatch.setattr(rtx, "__version__", "1.0.0.1")
    with pytest.raises(EngineError, match=r"bindings are 1\.0\.0\.1, its library is 1\."):
        load_runtime("tensorrt-rtx")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a graph", "is no ONNX graph: run `nima export` again"),
        (onnx.ModelProto().SerializeToString(), "is not a graph of `nima export`"),
    ],
)
def test_what_is_not_our_graph_is_one_line(
    rtx: Any, tmp_path: Path, content: bytes, reason: str
) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(content)
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", "8.9", "--onnx", str(graph)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("nima build: ")
    assert reason in result.output
    assert result.output.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_a_folder_is_no_engine_and_is_told_before_the_work(
    rtx: Any, exported: Path, tmp_path: Path
) -> None:
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", "8.9"]
    arguments += ["--onnx", str(exported / "model.onnx"), "-o", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.startswith(f"nima build: {tmp_path}: Is a directory")
    assert result.output.count("\n") == 1


def test_an_engine_for_rtx_leaves_the_served_one_alone(
    rtx: Any, exported: Path, tmp_path: Path
) -> None:
    graph, served = tmp_path / "model.onnx", tmp_path / "model.plan"
    shutil.copy(exported / "model.onnx", graph)
    served.write_bytes(b"served")
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", "8.9", "--onnx", str(graph)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert served.read_bytes() == b"served"
    assert EngineManifest.load(tmp_path / "model.rtx.plan").runtime == "tensorrt_rtx"


def test_build_command_compiles_for_rtx(rtx: Any, exported: Path, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", "8.9"]
    arguments += ["--onnx", str(exported / "model.onnx"), "-o", str(plan)]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "built" in first.output
    again = CliRunner().invoke(app, arguments)
    assert "up to date" in again.output
    unknown = CliRunner().invoke(app, [*arguments, "--compute-capability", "5.0", "--force"])
    assert unknown.exit_code == 1
    assert "this TensorRT knows" in unknown.output
    assert plan.is_file(), "a failed build must leave the engine that was there"
