"""Rounds in which several choices are measured in turn, for the scripts of ``benchmarks/``.

Each measurement is told as it comes. A run that fails or is stopped has the table of the rounds
that were over: in one that was not, some choices have had a turn and others have not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from nima_client import NimaError
from nima_client._os_errors import in_words
from nima_client._signals import Stopped

T = TypeVar("T")
_FAILURES = (RuntimeError, OSError, NimaError)
"""Of a server or a load."""


class Rounds(Generic[T]):
    """Rounds over a few choices, the order of which rotates with the rounds.

    Args:
        program: the script's name, before every line on standard error.
        wanted: how many rounds, 1 or more.
        unit: what a round is called.
    """

    def __init__(self, program: str, wanted: int, unit: str = "round") -> None:
        self._program, self._wanted, self._unit = program, wanted, unit
        self._over: list[dict[str, T]] = []

    def run(
        self, names: Sequence[str], measure: Callable[[str], T], line: Callable[[str, T], str]
    ) -> None:
        """Measure every choice in every round.

        Args:
            names: of the choices, each once.
            measure: gives the figures of one.
            line: what is told of one and its figures.
        """
        for number in range(self._wanted):
            shift = number % len(names)
            found: dict[str, T] = {}
            for name in [*names[shift:], *names[:shift]]:
                found[name] = measure(name)
                print(
                    f"{self._program}: {self._unit} {number + 1} of {self._wanted}, "
                    f"{line(name, found[name])}",
                    file=sys.stderr,
                    flush=True,
                )
            self._over.append({name: found[name] for name in names})

    @contextlib.contextmanager
    def table(self, make: Callable[[dict[str, list[T]]], str]) -> Iterator[None]:
        """Around the run and all it needs: prints its table at the end, however that comes.

        Args:
            make: the table of the figures of each choice, one a complete round and one at least.

        Raises:
            SystemExit: a server or the load failed, which is told; with status 1.
            KeyboardInterrupt: the run was stopped. Other errors pass through as well.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            stopped = isinstance(error, KeyboardInterrupt)
            why = "stopped" if stopped else _why(error)
            self._print(make, why)
            if isinstance(error, Stopped):
                error.kept = self._progress()
            if stopped or not isinstance(error, _FAILURES):
                raise
            raise SystemExit(f"{self._program}: ended early, {self._progress()}: {why}") from None
        self._print(make, "")

    def _progress(self) -> str:
        return f"{len(self._over)} of {self._wanted} {self._unit}s were over"

    def _print(self, make: Callable[[dict[str, list[T]]], str], why: str) -> None:
        if not self._over:
            return
        if len(self._over) < self._wanted:
            print(f"**Incomplete**: {self._progress()} when the run ended early ({why}).\n")
        print(make({name: [found[name] for found in self._over] for name in self._over[0]}))
        sys.stdout.flush()


@contextlib.contextmanager
def told_in_a_line(program: str) -> Iterator[None]:
    """Around a script that keeps itself what it has measured: a failure ends it with one line.

    Args:
        program: the script's name.

    Raises:
        SystemExit: a server or the load failed, which is told; with status 1.
    """
    try:
        yield
    except _FAILURES as error:
        raise SystemExit(f"{program}: ended early: {_why(error)}") from None


def _why(error: BaseException) -> str:
    return " ".join(in_words(error).split()) or type(error).__name__
