"""Measure a distilled checkpoint again: agreement with its teacher on the held-out photos.

python -m nima_training.distill.measure CHECKPOINT --photos FOLDER --teacher TFLITE
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def measure(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    photos: Annotated[Path, typer.Option(help="The folder of photos it was distilled on.")],
    teacher: Annotated[Path, typer.Option(help="TFLite NIMA to agree with.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the teacher.")] = 2,
) -> None:
    """Print one line for each held-out set, as `nima distill` does at its end."""
    from nima_training.checkpoint import load_checkpoint
    from nima_training.distill.agreement import agreement_line, measure_once
    from nima_training.distill.photos import split_photos
    from nima_training.distill.teacher import TFLiteTeacher

    try:
        loaded = load_checkpoint(checkpoint)
        training = loaded.meta.get("training") or {}
        if training.get("command") != "distill":
            raise ValueError(f"{checkpoint} was not made by nima distill: no photos were held out")
        seed = int(training["seed"])
        test = split_photos(photos, seed)["test"]
        labeller = TFLiteTeacher(teacher, threads)
        metrics = measure_once(loaded.model, test, labeller, loaded.spec, seed)
    except (ValueError, OSError) as error:
        typer.echo(f"nima_training.distill.measure: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    for part, values in metrics.items():
        typer.echo(agreement_line(f"held-out {part}", values))


if __name__ == "__main__":
    app()
