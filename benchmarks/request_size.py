"""What photos that share a request bring: one client, one server, the sizes in turn.

    python benchmarks/request_size.py --photos FOLDER [--set small] [--precision fp32]

``advised`` is what the client does by itself. Ratios are medians of the rounds' own, to the first
of the sizes; CPU is that of server and client.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

from nima_build.bench.arguments import count, told_by
from nima_build.bench.cpu import cpu_seconds
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.photos import photo_set
from nima_build.bench.rounds import Rounds
from nima_build.repository import GRAPHS
from nima_build.server import EmbeddedServer, ServerOptions
from nima_client import NimaClient
from nima_client._signals import stoppable
from nima_client.contract import MAX_BATCH_SIZE

ADVISED = "advised"
Figures = tuple[float, float]
"""Images per second, CPU ms an image."""


def table(found: dict[str, list[Figures]]) -> str:
    """A row a size; ratios to the first."""
    base = next(iter(found.values()))
    lines = ["| photos a request | images/s | ratio | CPU ms an image | ratio |", "|---" * 5 + "|"]
    for name, own in found.items():
        throughput, cpu = (statistics.median(column) for column in zip(*own))
        more, less = (statistics.median(a[n] / b[n] for a, b in zip(own, base)) for n in (0, 1))
        lines.append(f"| {name} | {throughput:.1f} | {more:.3f} | {cpu:.2f} | {less:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--set", default="small", choices=["small", "large"])
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    parser.add_argument("--sizes", type=count, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--count", type=count, default=200, help="photos a call")
    parser.add_argument("--rounds", type=count, default=6)
    options = parser.parse_args()
    if max(options.sizes) > MAX_BATCH_SIZE:
        parser.error(f"--sizes: a request has {MAX_BATCH_SIZE} photos at most")
    with told_by(parser):
        photos = [photo.data for photo in photo_set([options.photos], options.set).photos]
    files = [photos[n % len(photos)] for n in range(options.count)]
    title = f"{one_line(describe_machine())}; {options.set} photos, {options.precision}\n"
    rounds: Rounds[Figures] = Rounds("request_size.py", options.rounds)

    def measure(name: str) -> Figures:
        begin, cpu = time.perf_counter(), cpu_seconds(processes)
        clients[name].score(files)
        seconds, cpu = time.perf_counter() - begin, cpu_seconds(processes) - cpu
        return len(files) / seconds, 1e3 * cpu / len(files)

    with (
        rounds.table(lambda found: title + table(found)),
        EmbeddedServer(ServerOptions(precision=options.precision)) as server,
        NimaClient(server.grpc_url) as client,
    ):
        assert server.pid is not None
        processes = [os.getpid(), server.pid, *server.stub_pids()]
        clients = {str(size): client.with_options(request_size=size) for size in options.sizes}
        clients[ADVISED] = client
        for one in clients.values():
            one.score(files[:20])
        rounds.run(
            list(clients),
            measure,
            lambda name, own: f"{name} a request: {own[0]:.1f} images/s, CPU {own[1]:.2f} ms",
        )


if __name__ == "__main__":
    with stoppable("request_size.py"):
        main()
