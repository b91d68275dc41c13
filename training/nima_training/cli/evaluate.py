"""``nima evaluate``: a checkpoint against true ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    manifest: Annotated[Path, typer.Option(help="Manifest of nima prepare.")],
    photos: Annotated[Path, typer.Option(help="Folder the manifest's paths start at.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics, predictions and the page.")],
    split: Annotated[
        str, typer.Option(help="Split to score; all: every photo, as of a set not trained on.")
    ] = "test",
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples behind each interval.")] = 1000,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …; auto takes a GPU.")] = (
        "auto"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode photos.")] = 2,
) -> None:
    """Write metrics.json, predictions.parquet and report.html."""
    import torch

    from nima_training.checkpoint import load_checkpoint
    from nima_training.evaluate import evaluate as run

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        result = run(
            load_checkpoint(checkpoint), manifest, photos, out, split, bootstrap, device, workers
        )
    except (ValueError, OSError) as error:
        typer.echo(f"nima evaluate: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    for image_id, reason in result["unreadable"].items():
        typer.echo(f"skipped {image_id}: {reason}", err=True)
    overall = result["overall"]
    typer.echo(
        f"{result['photos']} photos: EMD r=2 {overall['emd_r2']['value']:.4f}, "
        f"r=1 {overall['emd_r1']['value']:.4f}, accuracy at 5 {overall['accuracy']['value']:.3f}"
    )
    typer.echo(f"page: {out / 'report.html'}")
