"""What photos that share a request bring: one client, one server, the sizes in turn.

    python benchmarks/request_size.py --photos FOLDER [--set small] [--precision fp32]

``advised`` is what the client does by itself. Ratios are medians of the rounds' own, to one photo a
request; CPU is that of server and client.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

from nima_build.bench import BenchError
from nima_build.bench.cpu import cpu_seconds
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.photos import photo_set
from nima_build.repository import GRAPHS
from nima_build.server import EmbeddedServer, ServerOptions
from nima_client import NimaClient

ADVISED = "advised"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--set", default="small", choices=["small", "large"])
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--count", type=int, default=200, help="photos a call")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    try:
        photos = [photo.data for photo in photo_set([options.photos], options.set).photos]
    except BenchError as error:
        parser.error(str(error))
    files = [photos[n % len(photos)] for n in range(options.count)]
    server = EmbeddedServer(ServerOptions(precision=options.precision))
    with server, NimaClient(server.grpc_url) as client:
        assert server.pid is not None
        processes = [os.getpid(), server.pid, *server.stub_pids()]
        clients = {str(size): client.with_options(request_size=size) for size in options.sizes}
        clients[ADVISED] = client
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
        for one in clients.values():
            one.score(files[:20])
        turns = list(clients.items())
        for number in range(options.rounds):
            shift = number % len(turns)
            for name, one in turns[shift:] + turns[:shift]:
                begin, cpu = time.perf_counter(), cpu_seconds(processes)
                one.score(files)
                seconds, cpu = time.perf_counter() - begin, cpu_seconds(processes) - cpu
                rows[name].append((len(files) / seconds, 1e3 * cpu / len(files)))
    base = next(iter(rows.values()))
    print(f"{one_line(describe_machine())}; {options.set} photos, {options.precision}")
    print(
        "| photos a request | images/s | ratio | CPU ms an image | ratio |\n|---|---|---|---|---|"
    )
    for name, found in rows.items():
        throughput, cpu = (statistics.median(column) for column in zip(*found))
        ratios = (
            statistics.median(a[n] / b[n] for a, b in zip(found, base, strict=True)) for n in (0, 1)
        )
        more, less = ratios
        print(f"| {name} | {throughput:.1f} | {more:.3f} | {cpu:.2f} | {less:.3f} |")


if __name__ == "__main__":
    main()
