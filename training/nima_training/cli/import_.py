"""``nima import``: published NIMA weights to a checkpoint of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


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
        typer.Option(help="Compare with the TFLite interpreter on so many photos (TFLite only)."),
    ] = 0,
) -> None:
    """Read the weights, measure reference quantiles on PHOTOS, write a checkpoint."""
    from rich.console import Console

    from nima_client._files import sha256_file
    from nima_training import distribution
    from nima_training.checkpoint import reference_quantiles, save_checkpoint
    from nima_training.distill.photos import list_photos
    from nima_training.imports import ImportFailed, import_weights
    from nima_training.inference import predict_files

    console = Console()
    try:
        imported = import_weights(source)
        paths = list_photos(photos)
    except ValueError as error:
        kind = "import" if isinstance(error, ImportFailed) else "photos"
        typer.echo(f"nima import: {kind}: {error}", err=True)
        raise typer.Exit(2) from error
    predicted, good, failures = predict_files(imported.model, paths, imported.spec)
    for index, reason in failures.items():
        typer.echo(f"skipped {paths[index].name}: {reason}", err=True)
    if not good:
        typer.echo("nima import: none of the photos is readable", err=True)
        raise typer.Exit(2)
    metrics: dict[str, object] = {}
    if check:
        metrics["interpreter"] = _compare(
            source, [paths[i] for i in good[:: max(1, len(good) // check)]][:check], imported
        )
        console.print(f"against ai-edge-litert: {metrics['interpreter']}")
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
    console.print(f"{imported.source}: {imported.backbone} written to {out}")


def _compare(source: Path, paths: list[Path], imported: object) -> dict[str, float]:
    """Difference of the means between the imported network and the TFLite interpreter."""
    import numpy as np

    from nima_client.preprocess import preprocess
    from nima_training import distribution
    from nima_training.distill.teacher import TFLiteTeacher
    from nima_training.imports import Imported
    from nima_training.inference import predict

    assert isinstance(imported, Imported)
    pixels = np.stack([preprocess(path.read_bytes(), imported.spec) for path in paths])
    import torch

    reference = distribution.mean(torch.from_numpy(TFLiteTeacher(source)(pixels)))
    error = (distribution.mean(predict(imported.model, pixels, imported.spec)) - reference).abs()
    return {
        "photos": float(len(paths)),
        "mean_abs_difference": round(float(error.mean()), 5),
        "max_abs_difference": round(float(error.max()), 5),
    }
