"""Scoring a collection: the loop that one machine's ``nima score`` and a cluster share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Union

from nima_client._client import NimaClient
from nima_client._images import ImageInput
from nima_client._retry import RetryPolicy
from nima_client.errors import Stage
from nima_client.library.rows import FailedRow, Row
from nima_client.library.sources import Photo
from nima_client.results import ImageFailure, ImageScore

Outcome = Union[Row, FailedRow]  # noqa: UP007  (evaluated on 3.10)

PATIENT = RetryPolicy(attempts=30, budget_s=60.0)
"""A run over a collection would rather wait for a server that restarts than end."""

_DOUBTFUL = (Stage.TRANSPORT, Stage.OVERLOAD, Stage.CONTRACT)


def score_photos(client: NimaClient, photos: Iterable[Photo]) -> Iterator[Outcome]:
    """Score photos as a stream, in order, in constant memory.

    Args:
        client: client of the server.
        photos: what to score; read as the window of requests has room.

    Yields:
        One row for each photo: its score, or why it has none.

    Raises:
        RequestError: the server is gone or is not NIMA; what was yielded stays valid, and every
            other photo is still to be scored.
    """
    early: dict[int, Outcome] = {}
    due = 0
    try:
        for place, outcome in certain_outcomes(client, photos):
            early[place] = outcome
            while due in early:
                yield early.pop(due)
                due += 1
    except Exception:
        yield from early.values()
        raise


def certain_outcomes(client: NimaClient, photos: Iterable[Photo]) -> Iterator[tuple[int, Outcome]]:
    """Score photos as a stream, each outcome as soon as it is certain, in constant memory.

    In order, but for failures that may be the server's end rather than the photo's fault: those
    come once the server has been seen to go on, or at the end. Should the stream end with an error,
    these photos have not been tried, and have no outcome.

    Args:
        client: client of the server.
        photos: what to score; read as the window of requests has room.

    Yields:
        The place of each photo among ``photos``, from 0, and its row: its score, or why it has
        none.

    Raises:
        RequestError: as :func:`score_photos`.
    """
    names: deque[str] = deque()
    doubtful: deque[tuple[int, Outcome]] = deque()

    def images() -> Iterator[ImageInput]:
        for photo in photos:
            names.append(photo.name)
            yield photo.image

    for result in client.score_iter(images(), ordered=True, on_error="return"):
        outcome = _outcome(names.popleft(), result)
        if isinstance(result, ImageFailure):
            if result.stage in _DOUBTFUL:
                doubtful.append((result.index, outcome))
                continue
        else:
            # A photo so far behind a failure was not yet read then: the server had gone on.
            while doubtful and result.index - doubtful[0][0] > client._most_under_way:
                yield doubtful.popleft()
        yield result.index, outcome
    yield from doubtful


def _outcome(name: str, result: ImageScore | ImageFailure) -> Outcome:
    if isinstance(result, ImageFailure):
        return FailedRow.from_failure(name, result)
    return Row.from_score(name, result)
