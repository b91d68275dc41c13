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
from nima_client.results import ImageFailure

Outcome = Union[Row, FailedRow]  # noqa: UP007  (evaluated on 3.10)

PATIENT = RetryPolicy(attempts=30, budget_s=60.0)
"""A run over a collection would rather wait for a server that restarts than end."""


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
    names: deque[str] = deque()
    # Failures that may be the server's end rather than the photo's fault. They count once a later
    # photo has been answered for; if the server is gone, these photos have not been tried.
    doubtful: list[FailedRow] = []

    def images() -> Iterator[ImageInput]:
        for photo in photos:
            names.append(photo.name)
            yield photo.image

    for result in client.score_iter(images(), ordered=True, on_error="return"):
        name = names.popleft()
        if isinstance(result, ImageFailure):
            failed = FailedRow.from_failure(name, result)
            if result.stage in (Stage.TRANSPORT, Stage.OVERLOAD, Stage.CONTRACT):
                doubtful.append(failed)
                continue
            outcome: Outcome = failed
        else:
            outcome = Row.from_score(name, result)
        yield from doubtful
        doubtful.clear()
        yield outcome
    yield from doubtful
