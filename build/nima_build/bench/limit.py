"""The limit of this machine: the same decoder and the same network, in process, on every core.

Each core gets a process that does nothing but decode, run the network, or both, image after image.
No server can be faster than ``combined`` with this decoder and this network: what a server loses
against it is its own cost (transport, copies, queues, scheduling), and that of its clients.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nima_build.bench import BenchError
from nima_build.cores import available_cores
from nima_build.processes import end_with_parent
from nima_client._signals import children_without_ctrl_c
from nima_client.preprocess import PreprocessSpec

STAGES = ("decode", "network", "combined")
_START_TIMEOUT = 60.0


@dataclass(frozen=True)
class Pace:
    """How fast a stage ran in process.

    Attributes:
        rate: images per second, all cores used together.
        cpu_ms: milliseconds of CPU an image; what other processes take does not count.
    """

    rate: float
    cpu_ms: float


@dataclass(frozen=True)
class Limit:
    """Images per second in process, over all cores.

    Attributes:
        decode: encoded bytes to the network's pixels, only.
        network: pixels to scores, only.
        combined: both, image by image.
        alone_ms: milliseconds of one image through both while the other cores are left idle.
    """

    decode: float
    network: float
    combined: float
    alone_ms: float

    def to_dict(self) -> dict[str, float]:
        """JSON-ready fields."""
        return asdict(self)


def _work(
    core: int,
    photos: Sequence[bytes],
    spec: PreprocessSpec,
    onnx: Path,
    orders: Any,
    answers: Any,
) -> None:
    """One core: waits for ``(stage, seconds)``, answers images, seconds taken, CPU seconds."""
    from nima_build.onnx_session import cpu_session
    from nima_client.contract import OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD, PIXELS
    from nima_client.preprocess import preprocess

    parent = multiprocessing.parent_process()
    end_with_parent(signal.SIGKILL, parent.pid if parent is not None else None)
    os.sched_setaffinity(0, {core})
    session = cpu_session(onnx)
    outputs = [OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD]
    ready = preprocess(photos[0], spec)[None]

    def decode(index: int) -> None:
        preprocess(photos[index], spec)

    def network(_index: int) -> None:
        session.run(outputs, {PIXELS: ready})

    def combined(index: int) -> None:
        session.run(outputs, {PIXELS: preprocess(photos[index], spec)[None]})

    steps = {"decode": decode, "network": network, "combined": combined}
    combined(0)
    answers.put("ready")
    while (order := orders.get()) is not None:
        stage, seconds = order
        step, images = steps[stage], 0
        begin, cpu = time.perf_counter(), time.process_time()
        while (taken := time.perf_counter() - begin) < seconds:
            step((images + core) % len(photos))
            images += 1
        answers.put((images, taken, time.process_time() - cpu))


class LimitMeter:
    """Measures the limit with one process per core; a context manager that ends them.

    Enter it in a thread that lives as long: the kernel ends the processes with that thread.

    The processes sleep between measurements, so that the meter can be kept through a whole run and
    asked again and again in turn with the server.

    Args:
        photos: encoded files, taken in turn.
        spec: preprocessing of the network.
        onnx: the network's graph.
        cores: processes, each pinned to one of the cores at hand; None takes as many as this
            process may use, by affinity and CPU quota.
    """

    def __init__(
        self, photos: Sequence[bytes], spec: PreprocessSpec, onnx: Path, cores: int | None = None
    ) -> None:
        self._arguments = (list(photos), spec, onnx)
        # A quota's cores, not the machine's: more processes would only take turns.
        self._cores = sorted(os.sched_getaffinity(0))[: cores or available_cores()]
        self._processes: list[Any] = []
        self._orders: list[Any] = []
        self._answers: Any = None

    def __enter__(self) -> LimitMeter:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._answers = context.Queue()
        for core in self._cores:
            orders = context.Queue()
            process = context.Process(
                target=_work,
                args=(core, *self._arguments, orders, self._answers),
                daemon=True,
            )
            with children_without_ctrl_c():
                process.start()
            self._processes.append(process)
            self._orders.append(orders)
        for _ in self._cores:
            self._answer(_START_TIMEOUT)

    def __exit__(self, *_: object) -> None:
        for orders in self._orders:
            orders.put(None)
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._orders = [], []

    def _answer(self, timeout: float) -> Any:
        try:
            return self._answers.get(timeout=timeout)
        except queue.Empty:
            raise BenchError("a process that measures the limit does not answer") from None

    def pace(self, stage: str, seconds: float, cores: int | None = None) -> Pace:
        """One of :data:`STAGES`, over all cores or the first few."""
        working = self._orders[:cores]
        for orders in working:
            orders.put((stage, seconds))
        answers = [self._answer(seconds + _START_TIMEOUT) for _ in working]
        rate = sum(images / taken for images, taken, _ in answers)
        images = sum(count for count, _, _ in answers)
        return Pace(rate, sum(cpu for _, _, cpu in answers) / max(1, images) * 1000)

    def rate(self, stage: str, seconds: float, cores: int | None = None) -> float:
        """Images per second of :meth:`pace`."""
        return self.pace(stage, seconds, cores).rate

    def measure(self, seconds: float = 1.0) -> Limit:
        """Everything, each for ``seconds``."""
        decode, network, combined = (self.rate(stage, seconds) for stage in STAGES)
        alone_ms = 1000 / self.rate("combined", seconds, cores=1)
        return Limit(decode, network, combined, alone_ms)
