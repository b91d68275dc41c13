"""Images per second and tails of this server and of what people would use instead.

    make bench-peers        or        python benchmarks/peers/compare.py --photos FOLDER

All servers are up at once and are loaded in turn, a second or two each, for several rounds, with
the limit of the machine in between: the tables give ratios within a round. Those whose turn it is
not are stopped (``turns.py``). Every server answers on
loopback over HTTP to the same load generator, with the same network, and with the same decoder
except where the name says otherwise. Programs that have no server (Keras, IQA-PyTorch) score the
same photos from files, in turn with the product. What fails is left out from there on and named;
the files are written after every round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import loopback
import offline
import servers
import tutorial
from http_load import LoadError
from rounds import OFFLINE_CONCURRENCY, Failures, measure, measure_offline
from tables import OfflineSample, Sample, median_limit, offline_table, plot, tables

from nima_build.bench.arguments import count, counts, positive, told_by
from nima_build.bench.limit import LimitMeter
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.photos import photo_set
from nima_build.cores import available_cores
from nima_build.repository import GRAPHS, default_repository, load_metadata
from nima_client._files import write_atomic
from nima_client._os_errors import in_words
from nima_client._signals import stoppable

PEERS = {
    "fastapi": servers.fastapi,
    "fastapi-pillow": lambda setting: servers.fastapi(setting, pillow=True),
    "litserve": servers.litserve,
    "bentoml": servers.bentoml,
    "ray": servers.ray_serve,
    "triton-tutorial": tutorial.triton_tutorial,
}
MEAN_TOLERANCE = 0.05  # a full decode instead of the reduced one, rounding


def check_same_work(product: servers.Target, peer: servers.Target) -> None:
    """Both must score the first photos alike, or the peer's speed means nothing.

    Raises:
        LoadError, OSError: it does not, or does not answer.
    """
    for index in range(min(3, len(product.requests))):
        wanted, got = product.mean(index), peer.mean(index)
        if abs(got - wanted) > MEAN_TOLERANCE:
            raise LoadError(f"it scores photo {index} {got}, not {wanted}")


@dataclass
class Run:
    """What is measured, and where it is written.

    Attributes:
        out: path of the files, without their suffix.
        title: the photos.
        machine: from :func:`nima_build.bench.machine.describe_machine`.
        network: what every server runs.
        precision: its graph.
        concurrencies: requests in flight.
        seconds: length of a measurement.
        names: of the servers, the product first.
        samples: measured so far.
        alone: of programs without a server.
        failures: who failed, and when.
        finished: whether all rounds are over.
    """

    out: Path
    title: str
    machine: dict[str, Any]
    network: str
    precision: str
    concurrencies: list[int]
    seconds: float
    names: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    alone: list[OfflineSample] = field(default_factory=list)
    failures: Failures = field(default_factory=dict)
    finished: bool = False

    @contextlib.contextmanager
    def left_out(self, name: str) -> Iterator[None]:
        """A failure within it leaves that one out, by name."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            self.failures[name] = " ".join(in_words(error).split())[:600]
            print(f"{name} is left out: {self.failures[name]}", flush=True)

    @property
    def measured(self) -> list[str]:
        """The names of which there are samples."""
        known = {sample.server for sample in self.samples}
        return [name for name in self.names if name in known]

    def text(self) -> str:
        """The tables."""
        rounds = 1 + max(sample.round for sample in self.samples)
        lines = [f"# Peers, {self.title}", f"{one_line(self.machine)}. Network: {self.network}."]
        lines += [f"**Left out** {name}: {why}" for name, why in self.failures.items()]
        if not self.finished:
            lines.append("**Incomplete**: written before the run was over.")
        lines += [
            tables(self.samples, self.measured, self.concurrencies),
            f"Ratios are medians of the rounds' own ({rounds}), the rest medians. "
            f"{self.seconds:g} s a measurement, loaded in turn over HTTP by one generator on the "
            "same cores, all servers up, those whose turn it is not stopped; the limit is measured "
            "right before and after every turn.",
        ]
        if self.alone:
            lines += [
                "## Without a server",
                offline_table(self.alone),
                f"Ratios to {self.names[0]} with {OFFLINE_CONCURRENCY} in flight, measured right "
                "before.",
            ]
        return "\n\n".join(lines) + "\n"

    def document(self) -> str:
        """Everything as JSON; a sample a line, since its latencies are many."""
        facts = {
            "machine": self.machine,
            "network": self.network,
            "precision": self.precision,
            "complete": self.finished and not self.failures,
            "failures": self.failures,
            "limit_images_per_second": median_limit(self.samples),
        }
        parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
        for key, found in (("samples", self.samples), ("offline", self.alone)):
            listed = ",\n".join(f"  {json.dumps(asdict(sample))}" for sample in found)
            parts.append(f' "{key}": [\n{listed}\n ]')
        return "{\n" + ",\n".join(parts) + "\n}\n"

    def save(self) -> None:
        """Write JSON, Markdown and PNG, each atomically; nothing while nothing was measured."""
        if not self.samples:
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in (
            ("json", self.document().encode()),
            ("md", self.text().encode()),
            ("png", plot(self.samples, self.measured, self.concurrencies, self.title)),
        ):
            write_atomic(self.out.with_name(f"{self.out.name}.{suffix}"), content)


def compare(
    run: Run, setting: servers.Setting, peers: list[str], programs: list[str], rounds: int
) -> None:
    """Servers first, then programs without one."""
    with contextlib.ExitStack() as up:
        targets = [up.enter_context(servers.product(setting))]
        for name in peers:
            print(f"starting {name} …", flush=True)
            with run.left_out(name):
                targets.append(up.enter_context(PEERS[name](setting)))
        run.names = [target.name for target in targets]
        for peer in targets[1:]:
            with run.left_out(peer.name):
                check_same_work(targets[0], peer)
        meter = up.enter_context(LimitMeter(setting.photos, setting.metadata.spec, setting.onnx))
        measure(
            *(targets, meter, run.concurrencies, run.seconds, rounds),
            *(run.samples, run.failures, run.save),
        )
    if not programs or run.names[0] in run.failures:
        return
    with contextlib.ExitStack() as up:
        product = up.enter_context(servers.product(setting))
        ready = []
        for name in programs:
            with run.left_out(offline.NAMES[name]):
                ready.append(up.enter_context(offline.program(name, setting)))
        measure_offline(product, ready, run.seconds, rounds, run.alone, run.failures, run.save)


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--offline", default=",".join(offline.NAMES), help=f"of {', '.join(offline.NAMES)}"
    )
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--concurrency", type=counts, default="1,2,4,8,16,32,64")
    parser.add_argument("--seconds", type=positive, default=1.2)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--set", default="small", choices=["small", "large"])
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    parser.add_argument("--model-repository", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("out/bench-peers"))
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name]
    programs = [name for name in options.offline.split(",") if name]
    for name, known in [(n, PEERS) for n in peers] + [(n, offline.NAMES) for n in programs]:
        if name not in known:
            parser.error(f"no peer {name!r}: there are {', '.join(known)}")
    with told_by(parser):
        chosen = photo_set([options.photos], options.set)
    if not options.python.is_file():
        raise SystemExit(f"no {options.python}: run `make bench-peers`, which installs the peers")
    if "ray" in peers and not loopback.enter():
        print("Ray Serve is left out: it binds beyond loopback, and no network namespace can be "
              "made here (Debian: util-linux, iproute2)")  # fmt: skip
        peers.remove("ray")
    repository = (options.model_repository or default_repository()).resolve()
    metadata = load_metadata(repository)
    run = Run(
        out=options.out / f"peers-{chosen.name}",
        title=f"{chosen.name} photos: {chosen.describe()}",
        machine=describe_machine(),
        network=f"{metadata.name} ({metadata.checkpoint_sha256[:12]}), {options.precision}",
        precision=options.precision,
        concurrencies=options.concurrency,
        seconds=options.seconds,
    )
    with tempfile.TemporaryDirectory(prefix="nima-peers-") as folder:
        setting = servers.Setting(
            photos=[photo.data for photo in chosen.photos],
            repository=repository,
            metadata=metadata,
            workers=available_cores(),  # as many as the product takes
            python=options.python.absolute(),
            folder=Path(folder),
            precision=options.precision,
        )
        try:
            compare(run, setting, peers, programs, options.rounds)
        except (RuntimeError, OSError) as error:
            why = in_words(error)
            raise SystemExit(f"ended early, rounds that were over are kept: {why}") from None
    run.finished = run.names[0] not in run.failures
    run.save()
    if run.samples:
        print(run.text())
    if run.failures:
        raise SystemExit(f"failed: {', '.join(run.failures)}")


if __name__ == "__main__":
    # Ended from outside (timeout, say), the servers must end, too: they have sessions of their own.
    with stoppable("peers/compare.py"):
        main()
