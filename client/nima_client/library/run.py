"""Scoring a collection: the loop that one machine's ``nima score`` and a cluster share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Union

from nima_client._client import NimaClient
from nima_client._images import ImageInput
from nima_client._retry import RetryPolicy
from nima_client.errors import RequestError, Stage
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
    names: deque[str] = deque()

    def images() -> Iterator[ImageInput]:
        for photo in photos:
            names.append(photo.name)
            yield photo.image

    # From a failure on that may be the server's end rather than the photo's fault, results are
    # held back. Should the stream end with an error, those photos have not been tried; once more
    # results have come than could have been under way then, the server had gone on.
    held: list[tuple[Outcome, bool]] = []
    since = 0
    try:
        for result in client.score_iter(images(), ordered=True, on_error="return"):
            outcome = _outcome(names.popleft(), result)
            doubtful = isinstance(result, ImageFailure) and result.stage in _DOUBTFUL
            since = 0 if doubtful else since + 1
            if doubtful or held:
                held.append((outcome, doubtful))
                if since > client._most_under_way:
                    yield from (later for later, _ in held)
                    held.clear()
            else:
                yield outcome
    except RequestError:
        yield from (later for later, doubtful in held if not doubtful)
        raise
    yield from (later for later, _ in held)


def _outcome(name: str, result: ImageScore | ImageFailure) -> Outcome:
    if isinstance(result, ImageFailure):
        return FailedRow.from_failure(name, result)
    return Row.from_score(name, result)
