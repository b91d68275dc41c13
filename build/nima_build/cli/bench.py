"""``nima bench``: load-test a server, beside the limit of the machine."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from nima_build.cli._precision import Precision
from nima_client._numbers import real, whole
from nima_client._os_errors import in_words
from nima_client.contract import MAX_BATCH_SIZE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _numbers(text: str, kind: Callable[[str], float]) -> tuple[float, ...]:
    try:
        values = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,8,32") from None
    if not all(0 < value < math.inf for value in values):
        raise typer.BadParameter("numbers must be positive and finite")
    return values


@app.command()
def bench(
    photos: Annotated[list[Path], typer.Argument(help="Photos and folders of photos.")],
    url: Annotated[
        str, typer.Option(help="gRPC host:port of a running server; none starts one.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and plots.")] = Path(
        "out/bench"
    ),
    concurrency: Annotated[
        str, typer.Option(help="Closed loops: requests in flight.")
    ] = "1,2,4,8,16,32",
    rate_shares: Annotated[
        str, typer.Option(help="Open loops, as shares of the machine's limit; empty for none.")
    ] = "0.3,0.6,0.8",
    request_size: Annotated[
        int, typer.Option(min=1, max=MAX_BATCH_SIZE, help="Closed loops: images in a request.")
    ] = 1,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.3,
            max=3600,
            help="Length of one measurement; three times that where photos are few.",
        ),
    ] = 3.0,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 3,
    instances: Annotated[
        int, typer.Option(min=0, help="Images worked on at once; 0 takes the default.")
    ] = 0,
    precision: Annotated[
        Precision, typer.Option(help="What the started server and the limit run.")
    ] = Precision.fp32,
    model_repository: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option(help="Repository to serve; the project's own by default."),
    ] = None,
) -> None:
    """Load-test a server with perf_analyzer and through the client, in turn with the limit.

    The limit is what the same decoder and network do in process on all cores of this machine. A
    server named by --url must run the network and precision that the limit does.
    Writes results.json, results.csv, summary.md and plots, and prints the summary. A run that fails
    on the way reports what it has, marked as incomplete, and exits with 1; so does one that is
    stopped (Ctrl-C), which exits with 130.
    """
    from nima_build.bench import BenchError
    from nima_build.bench.perf_analyzer import find_perf_analyzer
    from nima_build.bench.photos import load_photos, split_by_size
    from nima_build.bench.report import to_markdown, write_report
    from nima_build.bench.served import served_network
    from nima_build.bench.session import Sweep, run_sweep
    from nima_build.metadata import ArtefactError
    from nima_build.repository import check_graph, default_repository, load_metadata
    from nima_build.server import EmbeddedServer, ServerError, ServerOptions
    from nima_client._address import normalise_url
    from nima_client._files import check_output_folder

    def report(line: str) -> None:
        print(f"nima bench: {line}", file=sys.stderr, flush=True)

    sweep = Sweep(
        concurrencies=tuple(int(c) for c in _numbers(concurrency, whole)),
        rate_shares=_numbers(rate_shares, real),
        seconds=seconds,
        repeats=repeats,
        request_size=request_size,
    )
    if not (sweep.concurrencies or sweep.rate_shares):
        raise typer.BadParameter("nothing to measure: give --concurrency or --rate-shares")
    if request_size > 1 and not sweep.concurrencies:
        raise typer.BadParameter("--request-size is for closed loops: give --concurrency, too")
    if url and instances:
        raise typer.BadParameter(
            "--instances is for the server that is started without --url: give it to `nima serve`"
        )
    try:
        if url:
            url, encrypted = normalise_url(url)  # perf_analyzer knows no scheme
            if encrypted:
                raise BenchError("a server with TLS cannot be measured: name one without")
        check_output_folder(out)
        sets = split_by_size(load_photos(photos))
        binary = find_perf_analyzer()
        repository = model_repository or default_repository()
        metadata = load_metadata(repository)
        onnx = check_graph(repository, precision.value)
        with contextlib.ExitStack() as stack:
            pids = None
            if not url:
                report("starting a server …")
                options = ServerOptions(
                    model_repository=repository,
                    instances=instances or None,
                    precision=precision.value,
                )
                server = stack.enter_context(EmbeddedServer(options))
                url, pids = server.grpc_url, lambda: {server.pid or 0, *server.stub_pids()}
            network = served_network(url, metadata, precision.value)
            result = run_sweep(url, sets, metadata.spec, onnx, binary, sweep, network, report, pids)
        files = write_report(result, out)
    except (BenchError, ArtefactError, ServerError, ValueError, OSError) as error:
        report(in_words(error))
        raise typer.Exit(1) from None
    print(to_markdown(result))
    print(f"Written: {', '.join(str(path) for path in files)}")
    if result.failure:
        report(f"ended early, the report is incomplete: {result.failure}")
        raise typer.Exit(1)
