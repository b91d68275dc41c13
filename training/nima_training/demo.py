"""``make train-demo``: prepare, train, evaluate and analyse on the photos at hand, in minutes.

The photos have no human ratings, so the bundled checkpoint plays the raters: each photo's label is
its predicted distribution. What is shown is the way, not an accuracy.

    python -m nima_training.demo [FOLDER] [--out train-demo]
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "training" / "checkpoints" / "nima_mobilenet"
MARKER = ".nima-train-demo"
"""In a folder that a demo has filled: what is in it may be made anew."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def photos_at_hand() -> Path:
    """The shared training photos where they are, else those of the scikit-image wheel."""
    shared = Path(os.environ.get("NIMA_SHARED", REPOSITORY.parent / "shared")) / "photos" / "train"
    if shared.is_dir():
        return shared
    import skimage

    return Path(skimage.__file__).parent / "data"


def take_folder(out: Path, source: Path) -> None:
    """Make ``out``, or take one that a demo made: its photos and its run are removed.

    Raises:
        ValueError: it holds something else, or the photos are in it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder: choose another --out")
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise ValueError(f"{out} holds other files: choose another --out, or a new folder in it")
    if source.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"the photos are in {out}, whose files are made anew: choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    for old in ("photos", "run"):
        shutil.rmtree(out / old, ignore_errors=True)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Argument(help="Photos; default: those at hand.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("train-demo"),
    limit: Annotated[int, typer.Option(min=8, help="At most so many photos.")] = 240,
    epochs: Annotated[
        int, typer.Option(min=1, help="Below some 20 the batch norms have no statistics yet.")
    ] = 24,
    size: Annotated[int, typer.Option(min=32, help="Input side of the small network.")] = 96,
) -> None:
    """Run the four commands and say where the pages are."""
    import pandas as pd

    from nima_training.checkpoint import load_checkpoint
    from nima_training.cli.analyse import app as analyse
    from nima_training.cli.evaluate import app as evaluate
    from nima_training.cli.prepare import app as prepare
    from nima_training.cli.train import app as train
    from nima_training.data.sources import PROBABILITIES
    from nima_training.distill.photos import list_photos
    from nima_training.inference import predict_files

    source = folder or photos_at_hand()
    try:
        paths = list_photos(source, limit)
        take_folder(out, source)
    except (ValueError, OSError) as error:
        typer.echo(f"nima_training.demo: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    photos = out / "photos"
    photos.mkdir()
    for path in paths:
        shutil.copy(path, photos / path.name)
    typer.echo(f"{len(paths)} photos of {source}; the bundled checkpoint plays the raters …")
    raters = load_checkpoint(CHECKPOINT)
    predicted, good, _ = predict_files(raters.model, paths, raters.spec)
    labels = pd.DataFrame(predicted.double().numpy(), columns=PROBABILITIES)
    labels.insert(0, "image_id", [paths[i].stem for i in good])
    labels.drop_duplicates("image_id").to_csv(out / "labels.csv", index=False)
    manifest, run = out / "manifest.parquet", out / "run"

    def step(name: str, command: typer.Typer, *arguments: object) -> None:
        typer.echo(f"\nnima {name} {' '.join(map(str, arguments))}")
        command([str(argument) for argument in arguments], standalone_mode=False)

    step("prepare", prepare, out / "labels.csv", "--photos", photos, "--out", manifest)
    train_count = int((pd.read_parquet(manifest)["split"] == "train").sum())
    step(
        "train", train, manifest, "--photos", photos, "--out", run, "--backbone",
        "mobilenet_v3_small", "--weights", "none", "--epochs", epochs, "--batch-size",
        max(1, min(16, train_count // 2)), "--set", "frozen_epochs=0", "--set", "dropout=0.2",
        "--set", "backbone_lr=1e-3", "--set", "head_lr=2e-3", "--set", "workers=0", "--set",
        f"preprocessing={{resize_size={size}, crop_size={size}}}",
    )  # fmt: skip
    step(
        "evaluate", evaluate, run / "best", "--manifest", manifest, "--photos", photos, "--out",
        out / "evaluation", "--bootstrap", 200,
    )  # fmt: skip
    step(
        "analyse",
        analyse,
        photos,
        "--checkpoint",
        CHECKPOINT,
        "--out",
        out / "analysis",
        "--limit",
        10,
    )
    typer.echo(f"\npages: {out / 'evaluation/report.html'} and {out / 'analysis/analysis.html'}")


if __name__ == "__main__":
    app()
