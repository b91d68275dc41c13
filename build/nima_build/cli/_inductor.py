"""``nima build --target inductor``: a package that PyTorch compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer


def build_inductor(
    source: Path,
    output: Path | None,
    *,
    checkpoint: Path | None,
    device: str,
    precision: Literal["fp16", "fp32"],
    max_batch: int | None,
    force: bool,
    check: bool,
) -> str:
    """Build or check the package of ``source``, a ``model.onnx``.

    Returns:
        What was done, in one line.

    Raises:
        EngineError: no PyTorch, no GPU, or PyTorch cannot compile the network.
        ArtefactError: the package, the checkpoint or the metadata is missing or does not fit.
        ValueError: an option out of range.
    """
    from nima_build.inductor import MAX_BATCH, PackageOptions, build_package, check_package_here
    from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
    from nima_build.paths import BUNDLED_CHECKPOINT
    from nima_client._package import PACKAGE_NAME

    package = output or source.with_name(PACKAGE_NAME)
    if check:
        metadata = ModelMetadata.load(source.with_name(METADATA_NAME))
        manifest = check_package_here(package, metadata, device=device)
        return f"{package}: fits (PyTorch {manifest.torch_version})"
    folder = checkpoint or BUNDLED_CHECKPOINT
    if not folder.is_dir():
        raise ArtefactError(f"no checkpoint at {folder}: name one with --checkpoint")

    def progress(phase: str, done: int, _total: int) -> None:
        if phase == "compile" and not done:
            typer.echo(f"nima build: compiling the network of {folder} …", err=True)

    manifest, built = build_package(
        folder,
        source,
        package,
        PackageOptions(precision=precision, max_batch=max_batch or MAX_BATCH),
        device=device,
        progress=progress,
        force=force,
    )
    where = "CPU"
    if manifest.device == "cuda":
        where = f"compute capability {manifest.compute_capability}"
    return (
        f"{package}: {'built' if built else 'up to date'}, {package.stat().st_size / 1e6:.1f} MB, "
        f"{manifest.precision}, batch 1 to {manifest.max_batch}, "
        f"PyTorch {manifest.torch_version}, {where}"
    )
