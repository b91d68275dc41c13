"""Fuzz the preprocessing in child processes with a memory limit and a time limit for each file.

    python tests/reliability/fuzz.py --files 20000 [--seed 0] [--report fuzz.json]
    python tests/reliability/fuzz.py --only 12345        # one file again, in this process

A crash, a hang, an exception other than ImageRejected, pixels of another shape, or memory that
grows with the number of files fails the run and names the file by number.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from _corpus import formats, mutated, seeds

from nima_client.preprocess import ImageRejected, Limits, PreprocessSpec, preprocess

HERE = Path(__file__).resolve().parent
# Small enough that no file may honestly need more, large enough for the limit on pixels below.
MEMORY_BYTES = 2 << 30
LIMITS = Limits(max_bytes=1 << 20, max_pixels=20_000_000)
SECONDS_A_FILE = 10
MAX_GROWTH_BYTES = 48 << 20
_WARM_UP = 400
_BATCH = 5_000


@dataclass
class Report:
    """What a run saw.

    Attributes:
        files: files tried.
        scored: files that gave pixels; the rest were refused with a reason.
        refused: refusals by code.
        by_format: files by format of the seed.
        failures: one line for each file that broke the promise.
        worst_seconds: longest time of one file, with its number.
        worst_rss_mb: largest memory of a child process.
        growth_mb: largest growth of a child's memory after its warm-up.
        seconds: time of the run.
    """

    files: int = 0
    scored: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    by_format: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    worst_seconds: tuple[float, int] = (0.0, -1)
    worst_rss_mb: int = 0
    growth_mb: float = 0.0
    seconds: float = 0.0


def check_one(number: int, seed: int) -> str:
    """Preprocess one mutated file; the refusal's code, or "scored".

    Raises:
        AssertionError: the answer is neither pixels nor a refusal in one printable line.
    """
    _, data = mutated(number, seed)
    spec = PreprocessSpec()
    try:
        pixels = preprocess(data, spec, LIMITS)
    except ImageRejected as refusal:
        detail = refusal.detail
        assert detail.isprintable(), f"detail {detail!r}"
        assert 0 < len(detail) <= 120, f"detail {detail!r}"
        return refusal.code.value
    assert pixels.shape == (224, 224, 3), pixels.shape
    assert pixels.dtype == "uint8", pixels.dtype
    return "scored"


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(first: int, last: int, seed: int, journal: Path) -> None:
    """Check files first..last-1; the journal always holds the number of the current one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind in formats():
        seeds(kind)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The default action, so that it also ends a loop inside a C decoder.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    counts: collections.Counter[str] = collections.Counter()
    by_format: collections.Counter[str] = collections.Counter()
    worst, start_rss = (0.0, -1), 0
    # Written as they come: what a child saw outlives it.
    failures = journal.with_name("failures").open("a", buffering=1)
    with journal.open("wb", buffering=0) as file:
        for number in range(first, last):
            file.seek(0)
            file.write(struct.pack("<q", number))
            by_format[formats()[number % len(formats())]] += 1
            mutated(number, seed)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_A_FILE)
            begin = time.monotonic()
            try:
                counts[check_one(number, seed)] += 1
            except Exception as error:
                why = f"{type(error).__name__}: {error}".replace("\n", " ")
                failures.write(f"file {number} (seed {seed}): {why}\n")
            took = time.monotonic() - begin
            signal.setitimer(signal.ITIMER_REAL, 0)
            worst = max(worst, (took, number))
            if number - first == _WARM_UP:
                start_rss = _rss()
    growth = (_rss() - start_rss) / 2**20 if start_rss else 0.0
    if growth > MAX_GROWTH_BYTES / 2**20:
        failures.write(f"files {first}..{last}: memory grew by {growth:.0f} MiB\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps([counts, by_format, worst, peak, growth]))


def run(files: int, seed: int = 0, say: bool = False) -> Report:
    """Fuzz with ``files`` files and gather what the children saw."""
    report = Report()
    begin = time.monotonic()
    refused: collections.Counter[str] = collections.Counter()
    by_format: collections.Counter[str] = collections.Counter()
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        while first < files:
            last = min(files, first + _BATCH)
            ended = subprocess.run(
                [sys.executable, __file__, "--child", str(first), str(last), "--seed", str(seed),
                 "--journal", str(journal)],
                capture_output=True, text=True, timeout=SECONDS_A_FILE * (last - first) + 60,
            )  # fmt: skip
            if ended.returncode != 0:
                # The child died: this file did it. Go on behind it.
                (number,) = struct.unpack("<q", journal.read_bytes())
                how = f"ended with {ended.returncode}"
                if ended.returncode == -signal.SIGALRM:
                    how = f"ran for more than {SECONDS_A_FILE} s"
                tail = ended.stderr.strip().splitlines()[-1:] or [""]
                report.failures.append(f"file {number} (seed {seed}): {how} {tail[0]}")
                report.files += number + 1 - first
                first = number + 1
                continue
            counts, kinds, worst, peak, growth = json.loads(ended.stdout)
            report.files += last - first
            report.scored += counts.pop("scored", 0)
            refused.update(counts)
            by_format.update(kinds)
            report.worst_seconds = max(report.worst_seconds, tuple(worst))
            report.worst_rss_mb = max(report.worst_rss_mb, peak)
            report.growth_mb = max(report.growth_mb, round(growth, 1))
            first = last
            if say:
                print(f"{last} of {files} files", flush=True)
        if (told := journal.with_name("failures")).exists():
            report.failures += told.read_text().splitlines()
    report.refused, report.by_format = dict(refused), dict(by_format)
    report.seconds = round(time.monotonic() - begin, 1)
    return report


def main() -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child, given.seed, given.journal)
        return 0
    if given.only is not None:
        print(check_one(given.only, given.seed))
        return 0
    report = run(given.files, given.seed, say=True)
    text = json.dumps(asdict(report), indent=2)
    print(text)
    if given.report:
        given.report.write_text(text + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
