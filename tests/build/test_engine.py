"""Engines: every shipped backbone compiles in TensorRT for RTX; caching; refusals.

TensorRT for RTX compiles on a CPU-only machine with the builder and ONNX parser that TensorRT has,
so a graph TensorRT would refuse fails here. Its engines are not run: there is no GPU.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from nima_build import engine, gpu
from nima_build.cli.build import app
from nima_build.engine import EngineError, build_engine, compile_graph, load_runtime
from nima_build.engine_manifest import EngineManifest, EngineMismatch, EngineOptions, check_engine
from nima_build.export import to_onnx
from nima_build.half import to_fp16
from nima_build.metadata import ArtefactError
from nima_client.preprocess import PreprocessSpec
from nima_training.models import BACKBONES, create_model

# Half a gigabyte of weights: minutes for an architecture with nothing the others lack.
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
    manifest.save(plan)
    return manifest


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"onnx_sha256": "b" * 64}, "another model.onnx"),
        ({"runtime_version": "10.13.2.6"}, "built with TensorRT 10.9.0.34, here is 10.13.2.6"),
        ({"compute_capabilities": ["8.9", "9.0"]}, "8.9, the GPU here has 9.0"),
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


def test_compatible_engines_are_accepted_where_they_run(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    options = EngineOptions(version_compatible=True, hardware_compatible=True)
    _manifest(plan, options=options)
    check_engine(plan, runtime_version="10.13.0.1", compute_capabilities=["9.0", "8.0"])
    with pytest.raises(EngineMismatch):
        check_engine(plan, runtime_version="10.3.0.1")
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
