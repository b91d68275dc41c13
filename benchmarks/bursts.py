"""Requests that come at the same moment: whether the last is answered as soon as it could be.

    python benchmarks/bursts.py --photos FOLDER [--variants shipped,decoder-a-core] [--together 8]

Variants are those of ``variants.py``, all up at once, in turn; the order rotates. ``taskset -c 0``
in front confines the servers to a core, and this program with them.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from variants import VARIANTS, server, variant_names

from nima_build.bench import BenchError
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.open_loop import percentiles
from nima_build.bench.photos import photo_set
from nima_build.repository import GRAPHS, default_repository
from nima_client._signals import stoppable

# ``variants`` has put the folder of these on the path.
from http_load import ask  # isort: skip
from servers import triton_target  # isort: skip

LONG = 3
PAUSE = 0.03


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument(
        "--variants", type=variant_names, default=["shipped", "decoder-a-core"],
        help=", ".join(VARIANTS),
    )  # fmt: skip
    parser.add_argument("--together", type=int, default=8, help="requests of a burst")
    parser.add_argument("--bursts", type=int, default=300)
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    options = parser.parse_args()
    try:
        photos = [photo.data for photo in photo_set([options.photos], "small").photos]
    except BenchError as error:
        parser.error(str(error))
    names = options.variants
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with (
        tempfile.TemporaryDirectory(prefix="nima-bursts-") as folder,
        ThreadPoolExecutor(options.together) as pool,
        contextlib.ExitStack() as up,
    ):
        targets = []
        for name in names:
            running = server(name, default_repository(), Path(folder), options.precision)
            targets.append(triton_target(name, up.enter_context(running), photos))
        for number in range(options.bursts):
            burst = [(number + n) % len(photos) for n in range(options.together)]
            shift = number % len(targets)
            for target in targets[shift:] + targets[:shift]:
                begin = time.perf_counter()
                answers = [pool.submit(ask, target.address, target.requests[n]) for n in burst]
                for answer in answers:
                    answer.result()
                seconds[target.name].append(time.perf_counter() - begin)
                time.sleep(PAUSE)
    print(f"{one_line(describe_machine())}; {options.bursts} bursts of {options.together}")
    print(
        f"| variant | median ms | p95 | p99 | largest | longer than {LONG} medians |\n{'|---' * 6}|"
    )
    for name, found in seconds.items():
        median, p95, p99 = percentiles(found)
        late = sum(1e3 * second > LONG * median for second in found)
        print(
            f"| {name} | {median:.0f} | {p95:.0f} | {p99:.0f} | {1e3 * max(found):.0f} | {late} |"
        )


if __name__ == "__main__":
    with stoppable("bursts.py"):
        main()
