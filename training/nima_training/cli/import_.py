"""``nima import``: published NIMA weights to a checkpoint of this project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nima_client._os_errors import in_words

if TYPE_CHECKING:
    from nima_training.imports import Imported

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def import_(
    source: Annotated[
        Path, typer.Argument(help="TFLite, Keras HDF5 or IQA-PyTorch .pth file of a NIMA.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint directory to write.")],
    photos: Annotated[
        Path, typer.Option(help="Folder of photos that the reference quantiles are taken on.")
    ],
    name: Annotated[str | None, typer.Option(help="Name; default the file's.")] = None,
    check: Annotated[
        int,
        typer.Option(
            min=0, help="Compare with the TFLite interpreter on so many photos (TFLite only)."
        ),
    ] = 0,
) -> None:
    """Read the weights, measure reference quantiles on PHOTOS, write a checkpoint."""
    from nima_client._files import check_output_folder
    from nima_training.imports import import_weights

    try:
        check_output_folder(out)
        imported = import_weights(source)
        metrics = _write(imported, source, out, photos, name, check)
    except (ValueError, OSError) as error:
        typer.echo(f"nima import: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    if metrics:
        typer.echo(f"against ai-edge-litert: {metrics['interpreter']}")
    typer.echo(f"{imported.source}: {imported.backbone} written to {out}")


def _write(
    imported: Imported, source: Path, out: Path, photos: Path, name: str | None, check: int
) -> dict[str, dict[str, float]]:
    """Write the checkpoint; returns its metrics."""
    from nima_client._files import sha256_file
    from nima_training import distribution
    from nima_training.checkpoint import reference_quantiles, save_checkpoint
    from nima_training.distill.photos import list_photos
    from nima_training.inference import predict_files

    paths = list_photos(photos)
    predicted, good, failures = predict_files(imported.model, paths, imported.spec)
    for index, reason in failures.items():
        typer.echo(f"skipped {paths[index].name}: {reason}", err=True)
    if not good:
        raise ValueError("none of the photos is readable")
    metrics = {}
    if check:
        compared = [paths[i] for i in good[:: max(1, len(good) // check)]][:check]
        metrics["interpreter"] = _compare(source, compared, imported)
    save_checkpoint(
        out,
        imported.model,
        {
            "name": name or source.stem,
            "backbone": imported.backbone,
            "dropout": 0.0,
            "preprocessing": imported.spec.to_dict(),
            "reference": {
                "set": f"{len(good)} photographs of {photos.name}, whole, undistorted",
                "quantiles": reference_quantiles(distribution.mean(predicted).numpy()),
            },
            "training": {
                "command": "import", "source": source.name,
                "source_sha256": sha256_file(source), "kind": imported.source,
            },
            "metrics": metrics,
        },
    )  # fmt: skip
    return metrics


def _compare(source: Path, paths: list[Path], imported: Imported) -> dict[str, float]:
    """Difference of the means between the imported network and the TFLite interpreter."""
    import numpy as np

    from nima_client.preprocess import preprocess
    from nima_training import distribution
    from nima_training.distill.teacher import TFLiteTeacher
    from nima_training.inference import predict

    pixels = np.stack([preprocess(path.read_bytes(), imported.spec) for path in paths])
    import torch

    reference = distribution.mean(torch.from_numpy(TFLiteTeacher(source)(pixels)))
    error = (distribution.mean(predict(imported.model, pixels, imported.spec)) - reference).abs()
    return {
        "photos": float(len(paths)),
        "mean_abs_difference": round(float(error.mean()), 5),
        "max_abs_difference": round(float(error.max()), 5),
    }
