"""One run of `nima bench`: every load in turn with the machine's limit, several rounds, medians."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nima_build.bench import BenchError
from nima_build.bench.cpu import CpuMeter, CpuTime
from nima_build.bench.limit import Limit, LimitMeter, Pace
from nima_build.bench.machine import describe_machine
from nima_build.bench.open_loop import run_open_loop
from nima_build.bench.perf_analyzer import Load, Measured, run_perf_analyzer
from nima_build.bench.photos import PhotoSet, write_perf_inputs
from nima_build.bench.stages import StageMeter, Stages
from nima_client._os_errors import in_words
from nima_client.preprocess import PreprocessSpec

_IMAGES = 300  # for a 99th percentile that says more than the slowest request does
_TURNS = 8  # of all that is in flight: what is sent at once in the beginning is not the usual load
_LONGEST = 3


@dataclass(frozen=True)
class Sweep:
    """What to run.

    Attributes:
        concurrencies: closed loops: requests in flight.
        rate_shares: open loops: requests a second as shares of the machine's limit, measured at
            the beginning.
        seconds: length of one measurement; up to three times as long where fewer than 300 images
            would come, of which a 99th percentile is one or two.
        repeats: rounds over everything.
        request_size: images in a request of the closed loops.
    """

    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rate_shares: tuple[float, ...] = (0.3, 0.6, 0.8)
    seconds: float = 3.0
    repeats: int = 3
    request_size: int = 1

    def seconds_for(self, load: Load, limit: float) -> float:
        """How long to measure a load where the machine's limit is so many images a second."""
        images = max(_IMAGES, _TURNS * load.concurrency * load.batch)
        needed = images / (load.rate or limit)
        return min(max(self.seconds, needed), _LONGEST * self.seconds)


@dataclass(frozen=True)
class Sample:
    """One measurement, with the limit measured right before and after it.

    Attributes:
        photos: name of the photo set.
        tool: ``perf_analyzer``, or ``sdk`` for the open loop through the project's client.
        load: what was asked of the server.
        repeat: number of the round.
        measured: what came back.
        limit: images per second in process, decode and network together: the mean of just before
            and just after.
        stages: where the time went inside the server; None when it could not be told.
        failed: requests without a score.
        cpu: CPU time an image; only with perf_analyzer and a server this run started.
    """

    photos: str
    tool: str
    load: Load
    repeat: int
    measured: Measured
    limit: float
    stages: Stages | None
    failed: int = 0
    cpu: CpuTime | None = None

    @property
    def share(self) -> float:
        """Throughput as a share of the machine's limit."""
        return self.measured.throughput / self.limit


@dataclass
class Result:
    """Everything a run measured.

    Attributes:
        machine: from :func:`nima_build.bench.machine.describe_machine`.
        sets: description of each photo set by name.
        limits: limit by photo set; one entry a round.
        samples: every measurement.
        network: name and hash of the network served.
        failure: what ended the run before its end; empty for a complete one.
    """

    machine: dict[str, Any]
    network: str
    sets: dict[str, str] = field(default_factory=dict)
    limits: dict[str, list[Limit]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    failure: str = ""

    def median_limit(self, photos: str) -> Limit:
        """Median of each figure over the rounds."""
        rounds = [limit.to_dict() for limit in self.limits[photos]]
        return Limit(**{key: statistics.median(r[key] for r in rounds) for key in rounds[0]})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with every single sample."""
        samples = [{**asdict(s), "share_of_limit": s.share} for s in self.samples]
        for entry, sample in zip(samples, self.samples):
            entry["cpu_ms"] = sample.cpu.to_dict() if sample.cpu is not None else None
            del entry["cpu"]
        limits = {name: [limit.to_dict() for limit in row] for name, row in self.limits.items()}
        return {
            "machine": self.machine,
            "network": self.network,
            "complete": not self.failure,
            "failure": self.failure,
            "photo_sets": self.sets,
            "limits": limits,
            "samples": samples,
        }


def run_sweep(
    url: str,
    sets: Sequence[PhotoSet],
    spec: PreprocessSpec,
    onnx: Path,
    perf_analyzer: Path,
    sweep: Sweep,
    network: str,
    report: Callable[[str], None],
    server_pids: Callable[[], Iterable[int]] | None = None,
) -> Result:
    """Measure a running server.

    Args:
        url: ``host:port`` of its gRPC endpoint; on this machine, or the limit says nothing.
        sets: photos, from :func:`nima_build.bench.photos.split_by_size`.
        spec: preprocessing of the network.
        onnx: ``model.onnx`` of the network that the server runs.
        perf_analyzer: the binary.
        sweep: loads, lengths, repeats.
        network: what the server runs, for the report.
        report: receives one line a measurement.
        server_pids: gives the server's processes, to read their CPU time.

    Returns:
        Everything measured. After a failure (of the load generator, of the server) or Ctrl-C that
        is what came before it, and ``failure`` says what it was.

    Raises:
        BenchError: it failed before anything was measured.
        KeyboardInterrupt: likewise.
    """
    result = Result(machine=describe_machine(), network=network)
    meter = StageMeter(url)
    cpu = CpuMeter(server_pids) if server_pids is not None else None
    on_server = functools.partial(
        _SetBench,
        url=url,
        meter=meter,
        cpu=cpu,
        perf_analyzer=perf_analyzer,
        result=result,
        report=report,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="nima-bench-") as folder:
            for photos in sets:
                result.sets[photos.name] = photos.describe()
                result.limits[photos.name] = []
                inputs = Path(folder) / f"{photos.name}.json"
                write_perf_inputs(photos.photos, inputs)
                encoded = [photo.data for photo in photos.photos]
                with LimitMeter(encoded, spec, onnx) as limits:
                    bench = on_server(
                        name=photos.name, photos=encoded, inputs=inputs, limits=limits
                    )
                    bench.run(sweep)
    except (BenchError, OSError, KeyboardInterrupt) as error:
        if not result.samples:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        result.failure = "stopped" if stopped else " ".join(in_words(error).split())
        measured = {sample.photos for sample in result.samples}
        for name in set(result.sets) - measured:
            del result.sets[name], result.limits[name]
    finally:
        meter.close()
    return result


@dataclass
class _SetBench:
    """The rounds over one photo set."""

    url: str
    name: str
    photos: list[bytes]
    inputs: Path
    limits: LimitMeter
    meter: StageMeter
    cpu: CpuMeter | None
    perf_analyzer: Path
    result: Result
    report: Callable[[str], None]
    before: Pace = field(init=False)

    def run(self, sweep: Sweep) -> None:
        warm_up = Load(concurrency=max(sweep.concurrencies, default=4))
        run_perf_analyzer(self.perf_analyzer, self.url, self.inputs, warm_up, 1.0)
        limit_seconds = max(0.5, sweep.seconds / 3)
        rates: list[float] = []
        for repeat in range(sweep.repeats):
            limit = self.limits.measure(limit_seconds)
            self.before = self.limits.pace("combined", limit_seconds)
            self.result.limits[self.name].append(limit)
            # Fixed by the first round, so that all rounds run the same loads.
            rates = rates or [float(f"{share * limit.combined:.3g}") for share in sweep.rate_shares]
            closed = [Load(concurrency=c, batch=sweep.request_size) for c in sweep.concurrencies]
            paced = [Load(rate=r) for r in rates]
            for tool, loads in (("perf_analyzer", [*closed, *paced]), ("sdk", paced)):
                for load in dict.fromkeys(loads):  # one named twice is no second round
                    seconds = sweep.seconds_for(load, limit.combined)
                    self._measure(tool, load, repeat, seconds, limit_seconds)

    def _measure(
        self, tool: str, load: Load, repeat: int, seconds: float, limit_seconds: float
    ) -> None:
        self.meter.lap()
        if self.cpu is not None:
            self.cpu.lap()
        failed, cpu, why = 0, None, ""
        if tool == "sdk":
            outcome = run_open_loop(self.url, self.photos, load.rate, seconds, seed=repeat)
            measured, failed = outcome.measured, outcome.failed
            if failed:
                why = f"; {failed} of {outcome.sent} failed: {outcome.first_failure}"
        else:
            measured = run_perf_analyzer(self.perf_analyzer, self.url, self.inputs, load, seconds)
        stages, used = self.meter.lap(), self.cpu.lap() if self.cpu is not None else None
        before, after = self.before, self.limits.pace("combined", limit_seconds)
        self.before = after
        limit = (before.rate + after.rate) / 2
        if used is not None and tool == "perf_analyzer" and stages is not None:
            server, generator = (1000 * s / stages.requests / load.batch for s in used)
            cpu = CpuTime((before.cpu_ms + after.cpu_ms) / 2, server, generator)
        sample = Sample(self.name, tool, load, repeat, measured, limit, stages, failed, cpu)
        self.result.samples.append(sample)
        self.report(
            f"{self.name}, round {repeat + 1}, {tool}, {load.label}: "
            f"{measured.throughput:.1f} images/s ({sample.share:.0%} of the limit), "
            f"p50 {measured.p50:.1f} p99 {measured.p99:.1f} ms{why}"
        )
