"""Where the results of a call come out: in input order, or as they complete."""

from __future__ import annotations

from collections import deque
from typing import Union

from nima_client.errors import RequestError
from nima_client.results import ImageFailure, ImageScore

Result = Union[ImageScore, ImageFailure]  # noqa: UP007  (evaluated on 3.10)


def forget_frames(error: RequestError) -> None:
    """Let go of the frames that an error came through.

    They hold the images of its request, for as long as somebody keeps the failure. Raised again,
    it has a traceback again.
    """
    error.__traceback__ = None
    if error.__suppress_context__:
        error.__context__ = None
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None


class Outlet:
    """Results on their way out.

    Args:
        ordered: in the order of their indices, which have no gaps; else as they come.
        window: results held back while an earlier one is outstanding, before :attr:`full`.
    """

    def __init__(self, *, ordered: bool, window: int) -> None:
        self._ordered = ordered
        self._window = window
        self._held: dict[int, Result] = {}
        self._next = 0
        self._out: deque[Result] = deque()

    def put(self, result: Result) -> None:
        """One more result."""
        if not self._ordered:
            self._out.append(result)
            return
        self._held[result.index] = result
        while self._next in self._held:
            self._out.append(self._held.pop(self._next))
            self._next += 1

    def take(self) -> list[Result]:
        """What may be handed over now."""
        taken = list(self._out)
        self._out.clear()
        return taken

    @property
    def full(self) -> bool:
        """Whether as many results as may be are held back."""
        return len(self._held) >= self._window

    @property
    def empty(self) -> bool:
        """Whether nothing is held back or waits to be taken."""
        return not self._held and not self._out
