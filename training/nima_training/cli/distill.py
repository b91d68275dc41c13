"""``nima distill``: a smaller network that answers as its teacher does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def distill(
    photos: Annotated[Path, typer.Argument(help="Folder of photos; they need no ratings.")],
    teacher: Annotated[Path, typer.Option(help="TFLite NIMA (MobileNet v1) to imitate.")],
    out: Annotated[Path, typer.Option(help="Checkpoint directory to write.")],
    work_dir: Annotated[
        Path, typer.Option(help="Scratch for views and resumable state; several GB.")
    ],
    budget: Annotated[
        float, typer.Option(min=1, help="Million multiply-adds of the student; its teacher: 568.")
    ] = 380,
    name: Annotated[str, typer.Option(help="Name stored in the checkpoint.")] = "nima_mobilenet",
    views: Annotated[int, typer.Option(min=64, help="Augmented views to make.")] = 24_000,
    small_epochs: Annotated[
        float, typer.Option(min=0, help="Epochs on views of 160 pixels; 0: none.")
    ] = 8,
    small_minutes: Annotated[float | None, typer.Option(min=0.01, help="Time limit of it.")] = None,
    full_epochs: Annotated[
        float, typer.Option(min=0, help="Epochs on views as served; 0: none.")
    ] = 8,
    full_minutes: Annotated[float | None, typer.Option(min=0.01, help="Time limit of it.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split, the views and the order.")
    ] = 20,
    workers: Annotated[int, typer.Option(min=1, help="Processes that make views.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the training step.")] = 2,
) -> None:
    """Prune a MobileNet v1 NIMA and train what is left to agree with it; resumes after a kill."""
    from dataclasses import replace

    from nima_client.cli._console import open_console
    from nima_training.distill.agreement import agreement_line
    from nima_training.distill.config import DistillConfig, StageConfig
    from nima_training.distill.recipe import distill as run

    defaults = DistillConfig(photos, teacher, work_dir, out)

    def stage(base: StageConfig, epochs: float, minutes: float | None) -> StageConfig:
        return replace(base, epochs=epochs, max_minutes=minutes)

    console = open_console()
    try:
        config = replace(
            defaults,
            name=name,
            budget=budget * 1e6,
            views=views,
            seed=seed,
            workers=workers,
            threads=threads,
            small_stage=stage(defaults.small_stage, small_epochs, small_minutes),
            full_stage=stage(defaults.full_stage, full_epochs, full_minutes),
        )
        metrics = run(config, console)
    except (ValueError, OSError) as error:
        typer.echo(f"nima distill: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    for part, values in metrics.items():
        console.print(agreement_line(f"held-out {part}", values), soft_wrap=True)
    typer.echo(f"checkpoint written to {out}")
