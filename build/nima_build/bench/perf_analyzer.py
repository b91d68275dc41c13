"""Runs Triton's perf_analyzer and reads its report.

The binary comes from the tritonclient 2.50 manylinux wheel (PyPI's ``perf-analyzer`` is an empty
placeholder); ``make perf-analyzer`` puts it into ``.venv-perf`` with the CUDA runtime it links.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

from nima_build.bench import BenchError
from nima_client._address import endpoints, is_local
from nima_client._os_errors import in_words
from nima_client.contract import INPUT_IMAGE, MODEL_NAME

_BINARY = "perf_analyzer"
_LOCAL = Path(".venv-perf")
_WINDOWS = 3
_ATTEMPTS = 4
_HOW_TO_GET = (
    "perf_analyzer is not here: run `make perf-analyzer` in the project's folder, or set "
    "NIMA_PERF_ANALYZER to the binary"
)


@dataclass(frozen=True)
class Load:
    """One point of a sweep: a closed loop of ``concurrency``, or an open one of ``rate`` a second.

    Attributes:
        concurrency: requests kept in flight; 0 with a rate.
        rate: requests sent per second at Poisson times, whatever the answers do; 0 with a
            concurrency.
        batch: images in a request.
    """

    concurrency: int = 0
    rate: float = 0.0
    batch: int = 1

    def __post_init__(self) -> None:
        if (self.concurrency > 0) == (self.rate > 0):
            raise ValueError("a load has a concurrency or a rate")

    @classmethod
    def parse(cls, text: str) -> Load:
        """A closed loop by its short name, images a request x requests in flight: ``"32x4"``.

        Raises:
            ValueError: ``text`` is none.
        """
        batch, _, concurrency = text.partition("x")
        if not (batch.isdecimal() and concurrency.isdecimal() and int(batch) > 0):
            raise ValueError(f"{text!r} is no load such as 32x4 (images a request x in flight)")
        return cls(concurrency=int(concurrency), batch=int(batch))

    @property
    def label(self) -> str:
        """``"8 in flight"`` or ``"120 a second"``; with ``"of 4 images"`` where requests share."""
        text = f"{self.concurrency} in flight" if self.concurrency else f"{self.rate:g} a second"
        return f"{text}, of {self.batch} images" if self.batch > 1 else text


@dataclass(frozen=True)
class Measured:
    """What came back at one load.

    Attributes:
        throughput: images per second.
        p50: median latency in ms, as a client sees it; ``p95`` and ``p99`` likewise.
        mean: mean latency in ms, to be held against the server's means.
    """

    throughput: float
    p50: float
    p95: float
    p99: float
    mean: float


def find_perf_analyzer() -> Path:
    """The binary at ``$NIMA_PERF_ANALYZER``, in ``.venv-perf`` of the tree, or on ``PATH``.

    Raises:
        BenchError: there is none.
    """
    if chosen := os.environ.get("NIMA_PERF_ANALYZER"):
        path = Path(chosen)
        if not os.access(path, os.X_OK):
            raise BenchError(f"NIMA_PERF_ANALYZER={path} cannot be executed")
        return path
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        path = root / _LOCAL / "bin" / _BINARY
        if os.access(path, os.X_OK):
            return path
    if found := shutil.which(_BINARY):
        return Path(found)
    raise BenchError(_HOW_TO_GET)


def _environment(binary: Path, url: str) -> dict[str, str]:
    """Adds the CUDA runtime that was installed beside the binary; dials as our own client does."""
    environment = dict(os.environ)
    found = binary.parent.parent.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    known = environment.get("LD_LIBRARY_PATH", "")
    environment["LD_LIBRARY_PATH"] = ":".join([*map(str, found), *filter(None, [known])])
    if is_local(url):
        # No proxy can reach this machine's own loopback.
        environment["no_grpc_proxy"] = ",".join(host for host, _ in endpoints(url))
    return environment


def run_perf_analyzer(
    binary: Path, url: str, inputs: Path, load: Load, seconds: float, model: str = MODEL_NAME
) -> Measured:
    """Measure one load over gRPC; longer when no request ends within so short a time.

    Args:
        binary: from :func:`find_perf_analyzer`.
        url: ``host:port`` of the gRPC endpoint.
        inputs: file of :func:`nima_build.bench.photos.write_perf_inputs`.
        load: the load.
        seconds: length of the measurement, after perf_analyzer's own warm-up.
        model: name of the model.

    Raises:
        BenchError: perf_analyzer failed or reported nothing; the message carries its last lines.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _run_once(binary, url, inputs, load, seconds * 2**attempt, model)
        except _NothingMeasured:
            continue
    raise BenchError(f"no request ended in time at {load.label}: give a longer --seconds")


class _NothingMeasured(Exception):
    """No request ended within a window."""


def _run_once(
    binary: Path, url: str, inputs: Path, load: Load, seconds: float, model: str
) -> Measured:
    with tempfile.TemporaryDirectory(prefix="nima-perf-") as folder:
        report = Path(folder) / "report.csv"
        # Its own test of stability repeats until three windows agree, however long that takes. Here
        # three windows are taken whatever they say; `nima bench` repeats and takes medians.
        command = [
            str(binary),
            *("-m", model, "-u", url, "-i", "grpc", "--async"),
            *("--input-data", str(inputs), "--shape", f"{INPUT_IMAGE}:1", "-b", str(load.batch)),
            *("--measurement-interval", str(max(200, round(seconds * 1000 / _WINDOWS)))),
            *("--stability-percentage", "999", "--max-trials", str(2 * _WINDOWS)),
            # Verbose for the mean, which it leaves out where a --percentile is asked for.
            *("-f", str(report), "--verbose-csv"),
        ]
        if load.concurrency:
            command += ["--concurrency-range", str(load.concurrency)]
        else:
            command += ["--request-rate-range", f"{load.rate:g}"]
            command += ["--request-distribution", "poisson"]
        try:
            done = subprocess.run(
                command,
                env=_environment(binary, url),
                capture_output=True,
                text=True,
                timeout=seconds * 10 + 60,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"perf_analyzer did not end at {load.label}") from None
        except OSError as error:
            why = in_words(error)
            raise BenchError(f"perf_analyzer cannot be run ({why}): {_HOW_TO_GET}") from None
        if done.returncode != 0 or not report.is_file():
            said = (done.stdout + done.stderr).strip()
            if "No valid requests recorded" in said:
                raise _NothingMeasured
            tail = " / ".join(said.splitlines()[-4:])
            raise BenchError(f"perf_analyzer failed at {load.label}: {tail}")
        return parse_report(report.read_text())


def parse_report(text: str) -> Measured:
    """Read the last row of a ``-f``.

    Raises:
        BenchError: it has no such row, or one of figures that no load can have.
    """
    rows = list(csv.DictReader(text.splitlines()))
    try:
        row = rows[-1]
        measured = Measured(
            throughput=float(row["Inferences/Second"]),
            p50=float(row["p50 latency"]) / 1000,
            p95=float(row["p95 latency"]) / 1000,
            p99=float(row["p99 latency"]) / 1000,
            mean=float(row["Avg latency"]) / 1000,
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:  # TypeError: a row cut short
        raise BenchError(f"perf_analyzer's report cannot be read ({error})") from None
    if not all(0 < value < math.inf for value in astuple(measured)):
        raise BenchError(f"perf_analyzer's report cannot be meant: {measured}")
    return measured
