"""What each choice of the embedded profile brings: every variant up at once, loaded in turn.

    python benchmarks/variants.py --photos FOLDER [--variants shipped,one-step] [--rounds 5]

The table gives each variant's throughput and CPU time an image relative to the first one named, as
medians of the rounds' own ratios, and its tail. Idle servers cost next to nothing, so all can stay
up.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from pathlib import Path

from served_variants import VARIANTS, server, variant_names

from nima_build.bench.arguments import count, positive, told_by
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.open_loop import percentiles
from nima_build.bench.photos import photo_set
from nima_build.bench.rounds import Rounds
from nima_build.repository import GRAPHS, default_repository
from nima_client._signals import stoppable

# ``served_variants`` has put the folder of these on the path.
from http_load import closed_loop  # isort: skip
from servers import triton_target  # isort: skip

Figures = tuple[float, float, float, float]
"""Images per second, p50 and p99 in ms, CPU ms an image."""


def table(found: dict[str, list[Figures]]) -> str:
    """A row a variant; ratios to the first."""
    first, base = next(iter(found.items()))
    lines = [
        f"Ratios to {first}, medians of the rounds' own ({len(base)}).\n",
        "| variant | images/s | ratio | p50 ms | p99 ms | p99/p50 | CPU ms an image | ratio |",
        "|---" * 8 + "|",
    ]
    for name, own in found.items():
        ratio = statistics.median(b[0] / a[0] for a, b in zip(base, own))
        cost = statistics.median(b[3] / a[3] for a, b in zip(base, own))
        rate, p50, p99, cpu = (statistics.median(s[k] for s in own) for k in range(4))
        tail = statistics.median(s[2] / s[1] for s in own)
        lines.append(
            f"| {name} | {rate:.1f} | {ratio:.3f} | {p50:.1f} | {p99:.1f} | {tail:.2f} "
            f"| {cpu:.2f} | {cost:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--set", default="small", choices=["small", "large"])
    parser.add_argument(
        "--variants", type=variant_names, default=list(VARIANTS), help=", ".join(VARIANTS)
    )
    parser.add_argument("--concurrency", type=count, default=8)
    parser.add_argument("--seconds", type=positive, default=2.0)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    parser.add_argument("--model-repository", type=Path, default=None)
    options = parser.parse_args()
    repository = (options.model_repository or default_repository()).resolve()
    with told_by(parser):
        photos = [photo.data for photo in photo_set([options.photos], options.set).photos]
    print(one_line(describe_machine()), flush=True)
    rounds: Rounds[Figures] = Rounds("variants.py", options.rounds)

    def measure(name: str) -> Figures:
        target = targets[name]
        before = target.cpu_seconds()
        rate, latencies, answered = closed_loop(
            target.address, target.requests, options.concurrency, options.seconds
        )
        cpu_ms = (target.cpu_seconds() - before) / answered * 1000
        p50, _, p99 = percentiles(latencies)
        return rate, p50, p99, cpu_ms

    with (
        rounds.table(table),
        tempfile.TemporaryDirectory(prefix="nima-variants-") as folder,
        contextlib.ExitStack() as up,
    ):
        targets = {}
        for n in options.variants:
            running = server(n, repository, Path(folder), options.precision)
            targets[n] = triton_target(n, up.enter_context(running), photos)
        rounds.run(
            options.variants,
            measure,
            lambda name, own: (
                f"{name}: {own[0]:.1f} images/s, p50 {own[1]:.1f} p99 {own[2]:.1f} ms, "
                f"CPU {own[3]:.2f} ms an image"
            ),
        )


if __name__ == "__main__":
    with stoppable("variants.py"):
        main()
