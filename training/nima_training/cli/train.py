"""``nima train``: train a network on a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def train(
    manifest: Annotated[Path | None, typer.Argument(help="Manifest of nima prepare.")] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Folder the manifest's paths start at.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; holds best/ and last/.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of TrainConfig fields.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Name of the backbone.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="imagenet, none, a file, or a checkpoint.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs in all.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step and process.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field, as name=value in TOML syntax."),
    ] = None,
    print_config: Annotated[bool, typer.Option(help="Print the configuration and stop.")] = False,
) -> None:
    """Train, or resume the run in --out. Several GPUs: torchrun -m nima_training.cli.train."""
    import json

    from accelerate import PartialState

    from nima_client.cli._console import open_console
    from nima_training.config import load_config, parse_assignments
    from nima_training.loop import TrainingError
    from nima_training.loop import train as run

    flags = {
        "manifest": manifest, "photos": photos, "out": out, "backbone": backbone,
        "weights": weights, "epochs": epochs, "batch_size": batch_size,
    }  # fmt: skip
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        settings = load_config(config, {**parse_assignments(set_ or []), **given})
        best = None if print_config else run(settings, open_console())
    except (ValueError, OSError, TrainingError) as error:
        typer.echo(f"nima train: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    if best is None:
        as_given = ("manifest", "photos", "out", "weights")
        paths = {name: str(getattr(settings, name)) for name in as_given}
        typer.echo(json.dumps({**settings.to_dict(), **paths}, indent=1))
        return
    values = {name: entry["value"] for name, entry in best["validation"].items()}
    if PartialState().is_main_process:
        typer.echo(f"best checkpoint: {settings.out / 'best'}; validation {json.dumps(values)}")


if __name__ == "__main__":
    app()
