"""``nima export``: checkpoint to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint folder (model.safetensors and checkpoint.json)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the files, or a model repository; by default the one at "
            "$NIMA_MODEL_REPOSITORY or this tree's own.",
        ),
    ] = None,
    bundled: Annotated[
        bool,
        typer.Option(
            "--bundled",
            help="Export this tree's own checkpoint (give no argument).",
        ),
    ] = False,
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Write model.fp16.onnx too (FP16 body, FP32 moments)."),
    ] = False,
    int8: Annotated[
        Path | None,
        typer.Option("--int8", help="Write model.int8.onnx too, calibrated on this photo folder."),
    ] = None,
) -> None:
    """Export a checkpoint to ONNX and check the graph against PyTorch.

    Writes model.onnx (PIXELS uint8 [B,S,S,3] to DISTRIBUTION, MEAN, STD) and model.json, and in a
    model repository the facts in its configs and SHA256SUMS. Nothing is replaced unless every check
    passed. An FP16 or int8 graph of another checkpoint or preprocessing is removed.
    """
    from nima_build.export import ExportError, export_checkpoint, export_to_repository
    from nima_build.metadata import ArtefactError
    from nima_build.paths import BUNDLED_CHECKPOINT
    from nima_build.repository import INT8_NAME, default_repository, is_repository

    if bundled == (checkpoint is not None):
        raise typer.BadParameter("give a checkpoint folder, or --bundled, and not both")
    source = checkpoint if checkpoint is not None else BUNDLED_CHECKPOINT
    if bundled and not source.is_dir():
        typer.echo(
            "nima export: the bundled checkpoint comes with a checkout, not with an installed "
            "package: pip install -e in a checkout, or give a checkpoint folder",
            err=True,
        )
        raise typer.Exit(1)
    try:
        target = default_repository() if output is None else output
        into = export_to_repository if is_repository(target) else export_checkpoint
        done = into(source, target, fp16=fp16, calibration=int8)
    except (ExportError, ArtefactError, OSError) as error:
        typer.echo(f"nima export: {in_words(error)}", err=True)
        raise typer.Exit(1) from None
    typer.echo(
        f"{done.onnx_path}: {done.onnx_path.stat().st_size / 1e6:.1f} MB, opset "
        f"{done.metadata.opset}, agrees with PyTorch "
        f"(mean ratings within {done.max_mean_difference:.1g})"
    )
    for path in done.others:
        typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    for path in done.outdated:
        again = " (--int8 PHOTOS makes it anew)" if path.name == INT8_NAME else ""
        typer.echo(f"{path}: removed, it was of another checkpoint or preprocessing{again}")
