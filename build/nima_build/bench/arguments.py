"""What the scripts of ``benchmarks/`` take on their command lines, as types of :mod:`argparse`."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator

from nima_build.bench import BenchError
from nima_build.bench.perf_analyzer import Load
from nima_build.metadata import ArtefactError, ExportError
from nima_client._numbers import real, whole
from nima_client._os_errors import in_words


def count(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: ``text`` is none.
    """
    with contextlib.suppress(ValueError):
        if (value := whole(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas.

    Raises:
        argparse.ArgumentTypeError: ``text`` has another, or none.
    """
    return [count(part) for part in text.split(",")]


def not_negative(text: str) -> float:
    """A finite number of 0 or more.

    Raises:
        argparse.ArgumentTypeError: ``text`` is none.
    """
    with contextlib.suppress(ValueError):
        if 0 <= (value := real(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")


def positive(text: str) -> float:
    """A finite number above 0.

    Raises:
        argparse.ArgumentTypeError: ``text`` is none.
    """
    with contextlib.suppress(argparse.ArgumentTypeError):
        if (value := not_negative(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def load(text: str) -> Load:
    """A closed loop such as ``32x4``, see :meth:`~nima_build.bench.perf_analyzer.Load.parse`.

    Raises:
        argparse.ArgumentTypeError: ``text`` is none.
    """
    try:
        return Load.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextlib.contextmanager
def told_by(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Within it, photos and models that are not there are told as a wrong argument is.

    Raises:
        SystemExit: with status 2.
    """
    try:
        yield
    except (BenchError, ArtefactError, ExportError, OSError) as error:
        parser.error(in_words(error))
