"""Requests that come at the same moment: whether the last is answered as soon as it could be.

    python benchmarks/bursts.py --photos FOLDER [--variants shipped,decoder-a-core] [--together 8]

Variants are those of ``variants.py``, all up at once, in turn; the order rotates. ``taskset -c 0``
in front confines the servers to a core, and this program with them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from served_variants import VARIANTS, server, variant_names

from nima_build.bench.arguments import count, told_by
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.open_loop import percentiles
from nima_build.bench.photos import photo_set
from nima_build.bench.rounds import Rounds
from nima_build.repository import GRAPHS, default_repository
from nima_client._signals import stoppable

# ``served_variants`` has put the folder of these on the path.
from http_load import ask  # isort: skip
from servers import triton_target  # isort: skip

LONG = 3
PAUSE = 0.03


def table(found: dict[str, list[float]]) -> str:
    """A row a variant, of the seconds that its bursts took."""
    lines = [
        f"| variant | median ms | p95 | p99 | largest | longer than {LONG} medians |",
        "|---" * 6 + "|",
    ]
    for name, taken in found.items():
        median, p95, p99 = percentiles(taken)
        late = sum(1e3 * second > LONG * median for second in taken)
        lines.append(
            f"| {name} | {median:.0f} | {p95:.0f} | {p99:.0f} | {1e3 * max(taken):.0f} | {late} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument(
        "--variants", type=variant_names, default=["shipped", "decoder-a-core"],
        help=", ".join(VARIANTS),
    )  # fmt: skip
    parser.add_argument("--together", type=count, default=8, help="requests of a burst")
    parser.add_argument("--bursts", type=count, default=300)
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    options = parser.parse_args()
    with told_by(parser):
        photos = [photo.data for photo in photo_set([options.photos], "small").photos]
    title = f"{one_line(describe_machine())}; {options.bursts} bursts of {options.together}\n"
    bursts: Rounds[float] = Rounds("bursts.py", options.bursts, "burst")
    sent = itertools.count()

    def measure(name: str) -> float:
        number = next(sent) // len(targets)  # all have the same photos in a burst
        burst = [(number + n) % len(photos) for n in range(options.together)]
        target = targets[name]
        begin = time.perf_counter()
        answers = [pool.submit(ask, target.address, target.requests[n]) for n in burst]
        for answer in answers:
            answer.result()
        taken = time.perf_counter() - begin
        time.sleep(PAUSE)
        return taken

    with (
        bursts.table(lambda found: title + table(found)),
        tempfile.TemporaryDirectory(prefix="nima-bursts-") as folder,
        ThreadPoolExecutor(options.together) as pool,
        contextlib.ExitStack() as up,
    ):
        targets = {}
        for name in options.variants:
            running = server(name, default_repository(), Path(folder), options.precision)
            targets[name] = triton_target(name, up.enter_context(running), photos)
        bursts.run(options.variants, measure, lambda name, s: f"{name}: {1e3 * s:.0f} ms")


if __name__ == "__main__":
    with stoppable("bursts.py"):
        main()
