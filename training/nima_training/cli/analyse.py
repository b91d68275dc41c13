"""``nima analyse``: how controlled changes move the score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words
from nima_client.cli._connection import Header, TlsCa, TlsCert, TlsKey, credentials

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def analyse(
    photos: Annotated[Path, typer.Argument(help="Folder of photos.")],
    out: Annotated[Path, typer.Option(help="Folder for the table, the figures and the page.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Score with this checkpoint.")] = None,
    url: Annotated[str | None, typer.Option(help="Score with this server (gRPC).")] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    header: Header = None,
    kind: Annotated[list[str] | None, typer.Option(help="Distortion; repeat. All.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many photos, evenly spaced.")] = 100,
) -> None:
    """Write scores.parquet, analysis.json and analysis.html."""
    from contextlib import ExitStack

    from rich.console import Console
    from rich.text import Text

    from nima_client import NimaError
    from nima_client.library.text import printable
    from nima_training.analyse import analyse as run
    from nima_training.analyse import checkpoint_scorer, server_scorer
    from nima_training.checkpoint import load_checkpoint
    from nima_training.distill.photos import list_photos

    if (checkpoint is None) == (url is None):
        typer.echo("nima analyse: give either --checkpoint or --url", err=True)
        raise typer.Exit(2)
    tls, headers = credentials(tls_ca, tls_cert, tls_key, header)
    console = Console(stderr=True)
    try:
        paths = list_photos(photos, limit)
        with ExitStack() as stack:
            if checkpoint is not None:
                loaded = load_checkpoint(checkpoint)
                score, source = checkpoint_scorer(loaded), f"the checkpoint {loaded.meta['name']}"
            else:
                score = stack.enter_context(server_scorer(str(url), tls, headers))
                source = "a running server"
            status = stack.enter_context(console.status("scoring"))
            result = run(
                score, paths, out, source, kind, lambda name: status.update(Text(printable(name)))
            )
    except (ValueError, OSError, NimaError) as error:
        typer.echo(f"nima analyse: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    for name, missing in result["unreadable"].items():
        typer.echo(printable(f"skipped {name}: {missing}"), err=True)
    for name, summary in result["kinds"].items():
        changes = ", ".join(f"{v['strength']:g}: {v['change']:+.3f}" for v in summary["levels"])
        falls = f"; falls for {summary['falls']:.0%}" if "falls" in summary else ""
        typer.echo(f"{name} ({summary['unit']}): {changes}{falls}")
    typer.echo(f"{result['photos']} photos; page: {out / 'analysis.html'}")
