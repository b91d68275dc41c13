"""``nima perf-inputs``: photos as an input file of perf_analyzer."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def perf_inputs(
    photos: Annotated[list[Path], typer.Argument(help="Photos and folders of photos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "perf_inputs.json"
    ),
    limit: Annotated[
        Optional[int],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option(min=1, help="Take only the first so many photos."),
    ] = None,
) -> None:
    """Write photos as a file for perf_analyzer's --input-data.

    Each becomes base64 of a four-byte little-endian length and the file's bytes.
    """
    from nima_build.bench import BenchError
    from nima_build.bench.photos import load_photos, write_perf_inputs
    from nima_client.contract import INPUT_IMAGE, MODEL_NAME
    from nima_client.library.text import counted

    try:
        chosen = load_photos(photos)[:limit]
        write_perf_inputs(chosen, output)
    except (BenchError, OSError) as error:
        print(f"nima perf-inputs: {in_words(error)}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{counted(len(chosen), 'photo')} in {output}; use it with:")
    print(
        f"  perf_analyzer -m {MODEL_NAME} -i grpc -u 127.0.0.1:8001 --async "
        f"--input-data {shlex.quote(str(output))} --shape {INPUT_IMAGE}:1 "
        "--concurrency-range 1:32:4"
    )
