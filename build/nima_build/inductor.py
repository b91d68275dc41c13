"""A checkpoint to a package that PyTorch compiled ahead of time: a GPU engine without TensorRT.

``torch.export`` takes the network apart, TorchInductor compiles it (AOTInductor) to one file,
``model.pt2``, which runs without Python code of ours: pixels in, scores out. The same code compiles
for a CPU, which is how tests and CI exercise it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nima_build.engine_manifest import EngineMismatch, Precision, built_before
from nima_build.gpu import find_gpus
from nima_build.metadata import METADATA_NAME, ModelMetadata
from nima_build.paths import is_plain, own_folder, temporary_folder
from nima_build.repository import default_repository, load_module
from nima_build.tensorrt_api import EngineError, Progress
from nima_client._files import check_output, sha256_file, write_together
from nima_client._package import (
    PACKAGE_NAME,
    PackageError,
    PackageManifest,
    check_package,
    package_manifest_path,
)
from nima_client.contract import NETWORK_MODEL

MAX_BATCH = 128
EXAMPLE_BATCH = 32
"""The batch TorchInductor tunes for."""
_GRAPH_CODE = "compiled.py"
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class PackageOptions:
    """What may be chosen when a package is built.

    Attributes:
        precision: of the network's body; normalisation, softmax and moments are FP32 in both.
        max_batch: largest batch; the smallest is 1.
    """

    precision: Precision = "fp16"
    max_batch: int = MAX_BATCH

    def __post_init__(self) -> None:
        if self.precision not in ("fp16", "fp32"):
            raise ValueError(f"precision must be fp16 or fp32, not {self.precision!r}")
        # A batch that can only be 1 is no longer a dynamic one to torch.export.
        if self.max_batch < 2:
            raise ValueError("max_batch must be at least 2")


def build_package(
    checkpoint: Path,
    onnx_path: Path,
    target: Path,
    options: PackageOptions = PackageOptions(),
    *,
    device: str = "cuda",
    progress: Progress | None = None,
    force: bool = False,
) -> tuple[PackageManifest, bool]:
    """Compile a checkpoint, unless the very same package is already there.

    Args:
        checkpoint: its folder; must be the one ``onnx_path`` was exported from.
        onnx_path: ``model.onnx`` of `nima export`, beside which lies ``model.json``.
        target: the package to write, ``model.pt2``; its manifest goes beside it.
        options: precision and largest batch.
        device: ``cuda``, the GPU that will serve, or ``cpu``.
        progress: told of both steps.
        force: rebuild even when nothing changed.

    Returns:
        The manifest, and whether the package was built now.

    Raises:
        EngineError: no PyTorch, no such device, no C++ compiler, or PyTorch cannot compile it.
        ArtefactError: no such checkpoint, or another than that of ``model.onnx``.
        OSError: a file could not be read or written.
    """
    torch = load_torch(device)
    from nima_build.graph import HalfScoringGraph, load_exported

    metadata = ModelMetadata.load(onnx_path.with_name(METADATA_NAME))
    loaded = load_exported(checkpoint, metadata)
    gpu = next(iter(find_gpus()), None) if device == "cuda" else None
    wanted = PackageManifest(
        torch_version=str(torch.__version__),
        device=device,
        compute_capability=compute_capability(torch, device),
        checkpoint_sha256=metadata.checkpoint_sha256,
        preprocessing_id=metadata.spec.id,
        image_size=metadata.spec.crop_size,
        precision=options.precision,
        max_batch=options.max_batch,
        gpu=str(torch.cuda.get_device_name(0)) if device == "cuda" else "",
        driver=gpu.driver if gpu else "",
    )
    if not force and (found := built_before(lambda: check_package(target), wanted)):
        return found, False
    check_output(target)
    dtype = torch.float16 if options.precision == "fp16" else torch.float32
    graph = HalfScoringGraph(loaded.model, metadata.spec, dtype=dtype)
    with _plain_paths(), own_folder("nima-build-", PACKAGE_NAME) as folder:
        path = folder / PACKAGE_NAME
        compile_graph(graph, wanted, path, progress)
        manifest = replace(wanted, package_sha256=sha256_file(path))
        content = path.read_bytes()
    files = {target: content, package_manifest_path(target): manifest.to_json()}
    write_together(files)
    return manifest, True


@contextmanager
def _plain_paths() -> Iterator[None]:
    """Temporary files lie where PyTorch finds them, whose commands do not quote their paths."""
    before = tempfile.tempdir
    tempfile.tempdir = str(temporary_folder())
    if not is_plain(os.environ.get(_CACHE, "")):
        os.environ.pop(_CACHE, None)  # PyTorch names another when it looks for it
    try:
        yield
    finally:
        tempfile.tempdir = before


def compile_graph(
    graph: Any, manifest: PackageManifest, path: Path, progress: Progress | None = None
) -> None:
    """Export a module with a dynamic batch, and compile it.

    Args:
        graph: module of uint8 ``[B, S, S, 3]`` to FP32 ``[B, 12]``.
        manifest: names the device, the image size S and the largest batch.
        path: the ``.pt2`` file to write.
        progress: told of both steps.

    Raises:
        EngineError: no C++ compiler, or PyTorch cannot compile it.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(compiler[0]) is None:
        raise EngineError(f"no C++ compiler ({compiler[0]}): install g++, which PyTorch runs")
    tell = progress or (lambda _phase, _done, _total: None)
    batch = torch.export.Dim("batch", min=1, max=manifest.max_batch)
    size = manifest.image_size
    shape = (min(EXAMPLE_BATCH, manifest.max_batch), size, size, 3)
    on_cpu = manifest.device == "cpu"
    # Weights that a CPU's kernels have in a layout of their own are put into it now.
    settings = {"freezing": on_cpu}
    if not on_cpu:
        # As in compiled.py: without it PyTorch compiles test programs for the CPU's vector units.
        settings["cpp.vec_isa_ok"] = False
    try:
        pixels = torch.zeros(shape, dtype=torch.uint8, device=manifest.device)
        with torch.no_grad():
            tell("export", 0, 1)
            program = torch.export.export(
                graph.to(manifest.device).eval(), (pixels,), dynamic_shapes=({0: batch},)
            )
            tell("export", 1, 1)
            tell("compile", 0, 1)
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
            tell("compile", 1, 1)
    except Exception as error:  # whatever the compilers under PyTorch raise
        reason = " ".join(str(error).split())[:500]
        raise EngineError(
            f"PyTorch {torch.__version__} could not compile the network: "
            f"{type(error).__name__}: {reason}"
        ) from error


def check_package_here(
    package: Path, metadata: ModelMetadata, *, device: str = "cuda"
) -> PackageManifest:
    """Refuse a package that Triton could not serve on this machine, with this repository.

    Raises:
        EngineMismatch: another model, PyTorch or GPU.
        ArtefactError: the package or its manifest is missing, damaged or unreadable.
        EngineError: no PyTorch, or no such device.
    """
    torch = load_torch(device)
    check_package_of(package, metadata)
    try:
        return check_package(
            package,
            torch_version=str(torch.__version__),
            compute_capability=compute_capability(torch, device),
        )
    except PackageError as error:
        raise EngineMismatch(str(error)) from None


def check_package_of(package: Path, metadata: ModelMetadata) -> PackageManifest:
    """Refuse a package of another network; asks for neither torch nor a GPU.

    Raises:
        ArtefactError: missing, damaged, or of another checkpoint or preprocessing.
    """
    try:
        return check_package(
            package,
            checkpoint_sha256=metadata.checkpoint_sha256,
            preprocessing_id=metadata.spec.id,
        )
    except PackageError as error:
        raise EngineMismatch(str(error)) from None


def open_package(package: Path, device: str = "cuda", **options: Any) -> Any:
    """The package as it is served: a ``CompiledNetwork`` of ``nima_network``'s ``compiled.py``.

    Raises:
        ArtefactError: it does not fit.
        EngineError: PyTorch cannot load it.
    """
    load_torch(device)
    module = load_module(default_repository() / NETWORK_MODEL / "1" / _GRAPH_CODE)
    try:
        return module.CompiledNetwork(package, "cuda:0" if device == "cuda" else device, **options)
    except PackageError as error:
        raise EngineMismatch(str(error)) from None
    except RuntimeError as error:
        raise EngineError(f"PyTorch cannot load {package}: {error}") from error


def load_torch(device: str = "cuda") -> Any:
    """PyTorch, with a device.

    Raises:
        EngineError: it is not installed, or finds no such device.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EngineError("PyTorch is not installed: pip install 'nima-triton[train]'") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            f"PyTorch {torch.__version__} finds no CUDA device: "
            "a package is built on the kind of GPU it serves"
        )
    return torch


def compute_capability(torch: Any, device: str) -> str:
    """As the manifest has it: ``9.0``, or ``cpu``."""
    if device == "cpu":
        return "cpu"
    return "{}.{}".format(*torch.cuda.get_device_capability(0))
