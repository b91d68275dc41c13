"""``warnings.catch_warnings`` for several threads at once."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType


class Quiet:
    """A context without warnings: the first thread to come silences, the last to go restores.

    Python's own context manager keeps the filters that it found and puts them back. Threads that
    leave it in another order than they came would silence the whole process for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


QUIET = Quiet()
"""The one of this process: there is one list of filters."""
