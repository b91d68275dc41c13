"""``nima doctor``: examine a deployment and say what to do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from nima_client.cli._connection import Header, TlsCa, TlsCert, TlsKey, credentials
from nima_client.cli._output import ready_stdout

# Markdown, so that the paragraphs of the help are filled.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

_COLOURS = {"ok": "green", "warning": "yellow", "failure": "red", "skipped": "dim"}


@app.command()
def doctor(
    url: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option(
            help="host:port of the server (gRPC); a name with several servers has each examined. "
            "Default: $NIMA_URL or 127.0.0.1:8001."
        ),
    ] = None,
    http_url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="host:port of its HTTP endpoint: are the admin APIs closed there too?"),
    ] = None,
    metrics_url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="host:port of its metrics: what waits, and what failed."),
    ] = None,
    model_repository: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            exists=True, file_okay=False, help="The repository that the server should be serving."
        ),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    header: Header = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines, one finding a line.")
    ] = False,
) -> None:
    """Check a deployment: files, connection, model, scores, speed, clock, closed APIs, queue.

    Says what to do about each thing that is not well. Exit status 1 when something fails.
    """
    from rich.console import Console

    from nima_build.doctor import Target, examine
    from nima_client._defaults import default_url

    tls, headers = credentials(tls_ca, tls_cert, tls_key, header)
    target = Target(
        url=url or default_url(),
        http_url=http_url,
        metrics_url=metrics_url,
        model_repository=model_repository,
        tls=tls,
        headers=tuple(headers.items()),
    )
    try:
        ready_stdout()
    except ValueError as error:
        typer.echo(f"nima doctor: {error}", err=True)
        raise typer.Exit(2) from None
    # Nor is the port of "host:100:" the name of an emoji.
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    failed, server = False, ""
    for finding in examine(target):
        failed |= finding.status == "failure"
        if as_json:
            print(json.dumps(dataclasses.asdict(finding)), flush=True)
            continue
        if finding.server != server:
            server = finding.server
            console.print(f"-- {server or 'all of them'}", markup=False)
        colour = _COLOURS[finding.status]
        console.print(f"[{colour}]{finding.status:8}[/] {finding.check:13} ", end="")
        console.print(finding.detail, markup=False)
        if finding.advice:
            console.print(f"         -> {finding.advice}", markup=False)
    raise typer.Exit(1 if failed else 0)
