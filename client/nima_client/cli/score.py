"""``nima score``: scores for photos, folders, patterns and tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nima_client import _defaults
from nima_client._files import is_stream
from nima_client._os_errors import in_words
from nima_client._signals import Stopped
from nima_client.cli._connection import Header, TlsCa, TlsCert, TlsKey, credentials
from nima_client.cli._console import open_console
from nima_client.cli._job import Format, Job, choose_format, has_begun, say
from nima_client.cli._output import ready_stdout
from nima_client.cli._server import connected_client
from nima_client.errors import NimaError
from nima_client.library.actions import Action
from nima_client.library.folders import NoPhotosError
from nima_client.library.select import SORT_KEYS, Selection
from nima_client.library.sources import Sources, find_photos

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_SERVER = 3


@app.command()
def score(
    paths: Annotated[
        list[str],
        typer.Argument(help="Photos, folders, patterns ('trip/**/*.jpg') or tar shards."),
    ],
    form: Annotated[
        Optional[Format],  # noqa: UP045  (typer evaluates it on 3.10)
        typer.Option("--format", "-f", help="Default: what OUTPUT's ending says, else table."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="File for the scores; else standard output."),
    ] = None,
    url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="host:port of the server (gRPC). Default: $NIMA_URL, a server on "
            "127.0.0.1:8001, or the embedded one, started for this run."
        ),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    header: Header = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same OUTPUT.")
    ] = False,
    failures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for the photos that have no score, as JSON Lines."),
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Look into the folders of folders.")] = True,
    sort: Annotated[
        str, typer.Option(help=f"Order: {', '.join(SORT_KEYS)}; -mean for downwards.")
    ] = "",
    top: Annotated[Optional[int], typer.Option(min=0, help="Only the N best.")] = None,  # noqa: UP045
    bottom: Annotated[Optional[int], typer.Option(min=0, help="Only the N worst.")] = None,  # noqa: UP045
    minimum: Annotated[
        Optional[float], typer.Option("--min", help="Only means of at least this.")  # noqa: UP045
    ] = None,
    maximum: Annotated[
        Optional[float], typer.Option("--max", help="Only means of at most this.")  # noqa: UP045
    ] = None,
    max_side: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=64, help="Make larger photos smaller before upload (pixels)."),
    ] = None,
    in_flight: Annotated[
        int, typer.Option(min=1, help="Requests under way at once.")
    ] = _defaults.MAX_IN_FLIGHT,
    xmp: Annotated[
        bool,
        typer.Option(
            "--xmp", help="Write 1 to 5 stars into PHOTO.jpg.xmp beside each chosen photo."
        ),
    ] = False,
    copy_to: Annotated[
        Optional[Path], typer.Option(help="Copy the chosen photos into this folder.")  # noqa: UP045
    ] = None,
    link_to: Annotated[
        Optional[Path], typer.Option(help="Link the chosen photos into this folder.")  # noqa: UP045
    ] = None,
    move_to: Annotated[
        Optional[Path], typer.Option(help="Move the chosen photos into this folder.")  # noqa: UP045
    ] = None,
) -> None:
    """Predict how people would rate photos, from 1 to 10.

    A photo that cannot be scored, copied or rated is one line on standard error, and the exit
    status is then 1 at the end; it is 3 when the server is gone (what was scored is kept:
    --resume), and 141, without a word, when nobody reads the output any more (`| head`).
    """
    errors = open_console(stderr=True)
    tls, headers = credentials(tls_ca, tls_cert, tls_key, header)
    try:
        if output is None:
            ready_stdout()
        placements = [
            (Action(action), folder)
            for action, folder in (("copy", copy_to), ("link", link_to), ("move", move_to))
            if folder is not None
        ]
        if len(placements) > 1:
            raise ValueError("--copy-to, --link-to and --move-to exclude each other")
        # What is in the target already are copies, or those of an earlier run.
        left_out = placements[0][1] if placements else None
        try:
            sources = find_photos(paths, recursive=recursive, left_out=left_out)
        except NoPhotosError:
            if not (resume and output is not None and has_begun(output)):
                raise
            sources = Sources(())  # that run has moved them
        job = Job(
            sources=sources,
            selection=Selection(minimum, maximum, top, bottom, sort),
            form=choose_format(form, output),
            output=output,
            failures_file=failures,
            resume=resume,
            xmp=xmp,
            placement=placements[0] if placements else None,
            errors=errors,
        )
        if job.finished:
            failed = job.run_again()
        else:
            options = {"max_side": max_side, "max_in_flight": in_flight}
            with connected_client(url, errors, tls=tls, headers=headers, **options) as client:
                failed = job.run(client)
    except BrokenPipeError:
        raise  # of standard output
    except (ValueError, OSError) as error:
        say(errors, f"nima score: {in_words(error)}")
        raise typer.Exit(EXIT_USAGE) from None
    except NimaError as error:
        say(errors, f"nima score: {error}")
        raise typer.Exit(EXIT_NO_SERVER) from None
    except Stopped as stop:
        if output is not None and not is_stream(output):
            stop.kept = "what was scored is kept, --resume goes on with it"
        raise
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
