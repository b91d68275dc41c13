"""ONNX to a TensorRT engine, with TensorRT 10 or 11, or with TensorRT for RTX.

TensorRT for RTX has the same builder and needs no GPU to compile, so tests and CI send every graph
through this very code; its engines are for RTX cards and are not what Triton serves.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from nima_build.engine_manifest import (
    RUNTIME,
    EngineManifest,
    EngineOptions,
    built_before,
    check_engine,
    manifest_path,
)
from nima_build.gpu import Gpu, find_gpus
from nima_build.half import to_fp16
from nima_build.metadata import ArtefactError, ExportError
from nima_build.tensorrt_api import (
    EngineError,
    Progress,
    Target,
    load_runtime,
    make_logger,
    make_monitor,
)
from nima_client._files import check_output, sha256_file, write_together
from nima_client.contract import MAX_BATCH_SIZE, PIXELS


def build_engine(
    onnx_path: Path,
    plan: Path,
    options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
    *,
    target: Target = "tensorrt",
    compute_capability: str | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> tuple[EngineManifest, bool]:
    """Build an engine and its manifest, unless the very same one is already there.

    Args:
        onnx_path: FP32 ``model.onnx`` of `nima export`; an FP16 engine is made from its FP16
            version, which is derived here.
        plan: the engine file to write; its manifest goes beside it.
        options: precision, batch sizes, memory, compatibility.
        target: ``tensorrt`` needs the GPU that will serve; ``tensorrt-rtx`` compiles without one.
        compute_capability: for ``tensorrt-rtx`` without a GPU, e.g. ``8.9``.
        timing_cache: file of measured tactics, read and updated (TensorRT only); makes a rebuild
            quick.
        progress: told of every finished step.
        force: rebuild even when nothing changed.

    Returns:
        The manifest, and whether the engine was built now.

    Raises:
        EngineError: no TensorRT, no GPU, or a graph it refuses.
        ArtefactError: ``onnx_path`` is not a graph of `nima export`.
        OSError: a file could not be read or written.
    """
    trt = load_runtime(target)
    # CUDA's own order is "fastest first", nvidia-smi's is that of the bus: the engine must be built
    # on the GPU that its manifest names.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    gpu = next(iter(find_gpus()), None)
    wanted = EngineManifest(
        runtime=target.replace("-", "_"),
        runtime_version=trt.__version__,
        compute_capability=_capability(target, gpu, compute_capability),
        onnx_sha256=sha256_file(onnx_path),
        options=options,
        gpu=gpu.name if gpu else "",
        driver=gpu.driver if gpu else "",
    )
    if not force and (found := built_before(lambda: check_engine(plan), wanted)):
        return found, False
    check_output(plan)
    try:
        model = onnx.load(onnx_path)
    except DecodeError as error:
        raise ArtefactError(f"{onnx_path} is no ONNX graph: run `nima export` again") from error
    inputs = [entry.name for entry in model.graph.input]
    if inputs != [PIXELS]:
        raise ArtefactError(
            f"{onnx_path} is not a graph of `nima export`: its input is not {PIXELS} alone"
        )
    if options.precision == "fp16":
        try:
            model = to_fp16(model)
        except ExportError as error:
            raise ArtefactError(f"{onnx_path} is {error}") from error
    content = compile_graph(
        trt,
        model.SerializeToString(),
        options,
        compute_capability=wanted.compute_capability if target == "tensorrt-rtx" else None,
        timing_cache=timing_cache if target == "tensorrt" else None,
        progress=progress,
    )
    manifest = replace(wanted, engine_sha256=hashlib.sha256(content).hexdigest())
    files = {plan: content, manifest_path(plan): manifest.to_json()}
    write_together(files)
    return manifest, True


def check_engine_here(plan: Path, onnx_path: Path) -> EngineManifest:
    """Refuse an engine that Triton could not serve on this machine, with this repository.

    Raises:
        EngineMismatch: another model, TensorRT or GPU, or batches other than the configs promise.
        ArtefactError: the plan or its manifest is missing or unreadable.
        EngineError: no TensorRT, or no GPU.
    """
    version = load_runtime("tensorrt").__version__
    gpus = find_gpus()
    if not gpus:
        raise EngineError(
            "no NVIDIA GPU found (nvidia-smi): in a container, start it with `--gpus all`"
        )
    return check_engine(
        plan,
        onnx_sha256=sha256_file(onnx_path),
        runtime=RUNTIME,
        runtime_version=version,
        compute_capabilities=[gpu.compute_capability for gpu in gpus],
        batch=MAX_BATCH_SIZE,
    )


def _capability(target: Target, gpu: Gpu | None, asked: str | None) -> str:
    if target == "tensorrt":
        if gpu is None:
            raise EngineError(
                "no NVIDIA GPU found (nvidia-smi): an engine is built on the kind of GPU it serves"
            )
        if asked not in (None, gpu.compute_capability):
            raise EngineError(
                f"TensorRT builds for the GPU at hand ({gpu.compute_capability}), not for {asked}"
            )
        return gpu.compute_capability
    if asked is None and gpu is None:
        raise EngineError("no NVIDIA GPU found: name one with --compute-capability, e.g. 8.9")
    return asked or (gpu.compute_capability if gpu else "")


def compile_graph(
    trt: Any,
    graph: bytes,
    options: EngineOptions,
    *,
    compute_capability: str | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Compile an ONNX graph with a strongly typed network and one optimisation profile.

    Args:
        trt: module of :func:`load_runtime`.
        graph: serialised ONNX model whose types are final: FP16 stays FP16.
        options: batch sizes, memory, compatibility.
        compute_capability: target to compile for without a GPU (TensorRT for RTX only).
        timing_cache: file read before and written after.
        progress: told of every finished step.

    Returns:
        The serialised engine.

    Raises:
        EngineError: TensorRT refuses the graph or finds no implementation.
    """
    logger = make_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # how pybind11 says that the constructor returned nothing
        reasons = "; ".join(logger.errors) or "CUDA could not be initialised"
        raise EngineError(f"TensorRT {trt.__version__} does not start: {reasons}") from error
    # Required by TensorRT 11, where the flag is ignored; asked for in 10 so that both obey the
    # types in the graph.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise EngineError(_parser_message(parser))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    # On by default, and no more precise than FP16: what the graph keeps in FP32 is meant so.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if compute_capability is not None:
        _target_capability(trt, config, compute_capability)
    image = tuple(network.get_input(0).shape)[1:]
    profile = builder.create_optimization_profile()
    batches = (options.min_batch, options.opt_batch, options.max_batch)
    profile.set_shape(PIXELS, *((batch, *image) for batch in batches))
    config.add_optimization_profile(profile)
    if timing_cache is not None:
        blob = timing_cache.read_bytes() if timing_cache.is_file() else b""
        cache = config.create_timing_cache(blob)
        # False: a cache of another GPU or version is not used, and replaced below. None: damaged.
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    monitor = make_monitor(trt, progress) if progress else None
    if monitor is not None:
        config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        reasons = "; ".join(logger.errors) or "no reason given"
        raise EngineError(f"TensorRT {trt.__version__} could not build the engine: {reasons}")
    if timing_cache is not None:
        measured = bytes(memoryview(config.get_timing_cache().serialize()))
        write_together({timing_cache: measured})  # and removes what a killed build left of it
    return bytes(memoryview(serialized))


def _target_capability(trt: Any, config: Any, capability: str) -> None:
    name = "SM" + capability.replace(".", "")
    known = trt.ComputeCapability.__members__
    if name not in known:
        choices = ", ".join(sorted(entry for entry in known if entry.startswith("SM")))
        raise EngineError(f"no compute capability {capability}: this TensorRT knows {choices}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[name], 0)


def _parser_message(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return "TensorRT cannot parse the graph, and gives no reason"
    first = errors[0]
    where = f" (node {first.node_name()}, {first.node_operator()})" if first.node_name() else ""
    return f"TensorRT cannot parse the graph: {first.desc()}{where}"
