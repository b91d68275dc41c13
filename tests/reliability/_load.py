"""Load whose every image has a known score, and the account of what became of each."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import psutil
from _corpus import seeds

from nima_build.server import EmbeddedServer, RestartPolicy, ServerOptions, Supervisor
from nima_client import ImageScore, NimaClient


@cache
def photos() -> tuple[bytes, ...]:
    """Distinct valid photos of several formats."""
    return tuple(
        itertools.chain(seeds("JPEG")[:4], seeds("PNG")[:4], seeds("WEBP"), seeds("TIFF")[:2])
    )


def stubs_of(server: EmbeddedServer, model: str) -> list[int]:
    """Process ids of the stubs of one model."""
    pids = server.stub_pids()
    return [pid for pid in pids if model in " ".join(psutil.Process(pid).cmdline())]


@dataclass
class Account:
    """What became of each image: by index, its distribution or the code of its failure."""

    answers: dict[int, list[object]] = field(default_factory=lambda: collections.defaultdict(list))

    def check(self, count: int, expected: list[tuple[float, ...]]) -> collections.Counter[str]:
        """Every image has exactly one answer, and a score is that of the image it stands for.

        Returns:
            Answers by kind: "scored", or the code of the failure.
        """
        assert sorted(self.answers) == list(range(count)), "images without an answer"
        kinds: collections.Counter[str] = collections.Counter()
        for index, got in self.answers.items():
            assert len(got) == 1, f"image {index} has {len(got)} answers"
            if isinstance(got[0], str):
                kinds[got[0]] += 1
            else:
                assert got[0] == expected[index % len(expected)], (
                    f"image {index} has another's score"
                )
                kinds["scored"] += 1
        return kinds


def expected_scores(url: str) -> list[tuple[float, ...]]:
    """The distributions of :func:`photos`, asked before anything is broken."""
    with NimaClient(url) as client:
        return [score.distribution for score in client.score(photos())]


def drive(
    client: NimaClient, count: int, during: Callable[[int], None] = lambda done: None
) -> Account:
    """Score ``count`` images as a stream; ``during(done)`` runs after each answer."""
    account = Account()
    images = itertools.islice(itertools.cycle(photos()), count)
    for done, result in enumerate(client.score_iter(images, ordered=False, on_error="return"), 1):
        account.answers[result.index].append(
            result.distribution if isinstance(result, ImageScore) else result.code
        )
        during(done)
    return account


class at:
    """Calls ``action`` once, when ``count`` answers are there."""

    def __init__(self, count: int, action: Callable[[], object]) -> None:
        self._count, self._action = count, action
        self.seconds = 0.0

    def __call__(self, done: int) -> None:
        if done == self._count:
            self.seconds = time.monotonic()
            self._action()


@contextmanager
def supervised(
    options: ServerOptions, policy: RestartPolicy | None = None
) -> Iterator[tuple[EmbeddedServer, Supervisor, list[str]]]:
    """A server kept alive by its supervisor, which runs in the thread that started it."""
    server, lines = EmbeddedServer(options), []
    supervisor = Supervisor(server, policy, report=lines.append)
    started, failure = threading.Event(), []

    def own() -> None:
        try:
            server.start()
            started.set()
            supervisor.run()
        except BaseException as error:
            failure.append(error)
        finally:
            started.set()
            server.end_processes(grace=0)
            server.stop()

    owner = threading.Thread(target=own)
    owner.start()
    started.wait(90)
    try:
        if failure:
            raise failure[0]
        yield server, supervisor, lines
    finally:
        supervisor.stop()
        owner.join(60)
