"""The rounds of ``compare.py``: every server and program in turn; who fails is left out from there.

A failure of one is no reason to lose what the others did, so that it ends no run, unless it is that
of the product, to which everything is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import offline
import servers
from http_load import LoadError, closed_loop
from tables import OfflineSample, Sample
from turns import Turns

from nima_build.bench.limit import LimitMeter
from nima_build.bench.open_loop import percentiles
from nima_client._os_errors import in_words

OFFLINE_CONCURRENCY = 8

Failures = dict[str, str]
"""What became of those that failed, by name."""


def load(target: servers.Target, concurrency: int, seconds: float) -> dict[str, object]:
    """Throughput, CPU time and latencies of one server: fields of a :class:`Sample`.

    Raises:
        LoadError, OSError: it does not answer as it should.
    """
    before = target.cpu_seconds()
    rate, latencies, answered = closed_loop(target.address, target.requests, concurrency, seconds)
    cpu_ms = (target.cpu_seconds() - before) / answered * 1000
    p50, p95, p99 = percentiles(latencies)
    return {
        "images_per_second": rate,
        "cpu_ms": cpu_ms,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "latencies_ms": tuple(round(1000 * latency, 2) for latency in latencies),
    }


def _fail(failures: Failures, name: str, when: str, error: Exception) -> None:
    failures[name] = f"{when}: {' '.join(in_words(error).split())[:300]}"
    print(f"{name} is left out from here on, {failures[name]}", flush=True)


def measure(
    targets: Sequence[servers.Target],
    meter: LimitMeter,
    concurrencies: Sequence[int],
    seconds: float,
    rounds: int,
    samples: list[Sample],
    failures: Failures,
    save: Callable[[], None],
) -> None:
    """Every server at every concurrency, in turn; the order rotates with the rounds.

    Args:
        targets: all up; the first is the product.
        meter: of the machine's limit, measured right before and after every turn.
        concurrencies: requests in flight.
        seconds: length of a turn.
        rounds: how often.
        samples: takes what was measured.
        failures: takes who failed.
        save: called after every round.
    """
    product = targets[0].name
    with Turns(targets) as turns:
        limit = meter.rate("combined", seconds / 2)
        for number in range(rounds):
            for concurrency in concurrencies:
                left = [target for target in targets if target.name not in failures]
                shift = number % len(left)
                for target in left[shift:] + left[:shift]:
                    before = limit
                    try:
                        with turns.of(target):
                            found = load(target, concurrency, seconds)
                    except (LoadError, OSError) as error:
                        when = f"round {number + 1}, {concurrency} in flight"
                        _fail(failures, target.name, when, error)
                        if target.name == product:
                            save()
                            return
                    limit = meter.rate("combined", seconds / 2)
                    if target.name in failures:
                        continue
                    sample = Sample(
                        target.name,
                        concurrency,
                        round=number,
                        limit=(before + limit) / 2,
                        **found,  # type: ignore[arg-type]
                    )
                    samples.append(sample)
                    print(
                        f"round {number + 1}, {concurrency} in flight, {target.name}: "
                        f"{sample.images_per_second:.1f} images/s "
                        f"({sample.images_per_second / sample.limit:.0%} of the limit), "
                        f"p50 {sample.p50_ms:.1f} p99 {sample.p99_ms:.1f} ms, "
                        f"CPU {sample.cpu_ms:.1f} ms an image",
                        flush=True,
                    )
            save()


def measure_offline(
    product: servers.Target,
    programs: Sequence[offline.Program],
    seconds: float,
    rounds: int,
    samples: list[OfflineSample],
    failures: Failures,
    save: Callable[[], None],
) -> None:
    """Every program without a server, in turn with the product; arguments as in :func:`measure`."""
    for number in range(rounds):
        for program in programs:
            if program.name in failures:
                continue
            name = product.name
            try:
                own = load(product, OFFLINE_CONCURRENCY, seconds)
                name = program.name
                rate, cpu_ms = program.work(seconds)
            except (LoadError, OSError) as error:
                _fail(failures, name, f"round {number + 1}, without a server", error)
                if name == product.name:
                    save()
                    return
                continue
            sample = OfflineSample(
                program.name,
                number,
                rate,
                cpu_ms,
                own["images_per_second"],  # type: ignore[arg-type]
                own["cpu_ms"],  # type: ignore[arg-type]
            )
            samples.append(sample)
            print(
                f"round {number + 1}, {program.name}: {rate:.1f} images/s, CPU {cpu_ms:.1f} ms an "
                f"image; the product {sample.product_images_per_second:.1f} and "
                f"{sample.product_cpu_ms:.1f}",
                flush=True,
            )
        save()
