"""From a server's reply to scores, and from the results of a call to what it returns or raises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from nima_client._arguments import OnError
from nima_client._attempt import Attempt
from nima_client._outlet import Result
from nima_client._scales import MEAN, PROBABILITY, STD
from nima_client._transport import InferReply
from nima_client.errors import ModelError, RequestError, ScoringError
from nima_client.results import ImageFailure, ImageScore, ModelInfo


def scores_of(attempt: Attempt, reply: InferReply, info: ModelInfo) -> list[ImageScore]:
    """One score for each image of a request.

    Raises:
        ModelError: a score that is no number, or none that can be, which a broken engine may give
            for some images.
    """
    served = info.served
    if not math.isfinite(sum(reply.means) + sum(reply.stds) + sum(map(sum, reply.distributions))):
        raise ModelError(
            "the server gave a score that is not a number: its network or its engine is broken",
            request_id=reply.request_id,
            retryable=False,
        )
    if not _can_be(reply):
        raise ModelError(
            "the server gave a score that cannot be: its network or its engine is broken",
            request_id=reply.request_id,
            retryable=False,
        )
    return [
        ImageScore(
            index=item.index,
            mean=reply.means[row],
            std=reply.stds[row],
            distribution=reply.distributions[row],
            percentile=served.percentile(reply.means[row]),
            source=item.prepared.source,
            model_name=reply.model_name,
            model_version=reply.model_version,
            checkpoint_name=served.checkpoint_name,
            checkpoint_sha256=served.checkpoint_sha256,
            request_id=reply.request_id,
        )
        for row, item in enumerate(attempt.items)
    ]


def _can_be(reply: InferReply) -> bool:
    """Whether means, deviations and probabilities are within their scales."""
    return (
        MEAN.holds(reply.means)
        and STD.holds(reply.stds)
        and all(map(PROBABILITY.holds, reply.distributions))
    )


def raise_failures(results: Iterable[ImageScore | ImageFailure]) -> list[ImageScore]:
    """All results as scores.

    Raises:
        ScoringError: at least one is a failure; carries both.
    """
    scores: list[ImageScore] = []
    failures: list[ImageFailure] = []
    for result in results:
        if isinstance(result, ImageFailure):
            failures.append(result)
        else:
            scores.append(result)
    if not failures:
        return scores
    first = failures[0]
    total = len(scores) + len(failures)
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    raise ScoringError(
        f"{len(failures)} of {total} images have no score: {first.message}{more}",
        {score.index: score for score in scores},
        failures,
    ) from first.error


def each(results: Iterable[Result], on_error: OnError) -> Iterator[Result]:
    """The results of a stream, one after another.

    Raises:
        RequestError: (``on_error="raise"``) the reason of the first failure.
    """
    for result in results:
        if on_error == "raise" and isinstance(result, ImageFailure):
            raise _reason(result)
        yield result


def one_result(results: list[ImageScore | ImageFailure]) -> ImageScore:
    """The one score of a call with one image.

    Raises:
        RequestError: why there is none.
    """
    (result,) = results
    if isinstance(result, ImageScore):
        return result
    raise _reason(result)


def _reason(failure: ImageFailure) -> RequestError:
    assert failure.error is not None
    return failure.error
