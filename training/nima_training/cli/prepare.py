"""``nima prepare``: ratings and photos to one manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
KINDS = "ava, json, tid2013 or table"


@app.command()
def prepare(
    labels: Annotated[
        Path, typer.Argument(help="AVA.txt, a label JSON, the TID2013 folder, or a CSV/Parquet.")
    ],
    photos: Annotated[Path, typer.Option(help="Folder of the photos, searched recursively.")],
    out: Annotated[Path, typer.Option(help="Manifest to write (.parquet).")],
    kind: Annotated[str | None, typer.Option(help=f"{KINDS}; default: by name.")] = None,
    ava_lists: Annotated[
        Path | None,
        typer.Option(help="Folder with AVA's generic_test.jpgl: the official split."),
    ] = None,
    ava_styles: Annotated[Path | None, typer.Option(help="Folder with AVA's style lists.")] = None,
    ava_tags: Annotated[Path | None, typer.Option(help="AVA's tags.txt.")] = None,
    min_side: Annotated[int, typer.Option(min=1, help="Drop smaller photos.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Processes that check files.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
) -> None:
    """Check every photo once, drop and report what is broken, split without leakage."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from nima_client.cli._console import open_console
    from nima_training.data import ava, sources
    from nima_training.data.manifest import build_manifest

    chosen = kind or _guess(labels)
    try:
        if out.exists() and labels.exists() and out.samefile(labels):
            raise ValueError(f"{out} is the label file: choose another --out")
        if chosen == "ava":
            names = ava.read_names(ava_tags) if ava_tags else None
            ratings = sources.read_ava(labels, names)
        elif chosen == "json":
            ratings = sources.read_label_json(labels)
        elif chosen == "tid2013":
            ratings = sources.read_tid2013(labels if labels.is_dir() else labels.parent)
        elif chosen == "table":
            ratings = sources.read_own(labels)
        else:
            raise ValueError(f"--kind must be {KINDS}, not {chosen!r}")
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = open_console(stderr=True)
        hidden = not console.is_interactive
        with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
            task = bar.add_task("checking photos", total=None)
            report = build_manifest(
                ratings, photos, out,
                test_ids=ava.official_test_ids(ava_lists) if ava_lists else None,
                styles=ava.read_styles(ava_styles) if ava_styles else None,
                min_side=min_side, workers=workers, seed=seed,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
    except (ValueError, OSError) as error:
        typer.echo(f"nima prepare: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    typer.echo(report.summary())
    for warning in report.warnings:
        typer.echo(f"nima prepare: warning: {warning}", err=True)
    typer.echo(f"manifest: {out}; every dropped image: {out.with_suffix('.report.json')}")


def _guess(labels: Path) -> str:
    if labels.is_dir() or labels.name.startswith("mos_"):
        return "tid2013"
    if labels.suffix == ".json":
        return "json"
    return "ava" if labels.suffix == ".txt" else "table"
