"""A server that is none, for tests of code that uses the client.

    from nima_client import NimaClient
    from nima_client.testing import FakeTransport

    def test_my_service():
        fake = FakeTransport()
        with NimaClient(transport=fake) as client:
            ...
        assert len(fake.requests) == 3

By default the fake refuses what a server refuses (no image, too large) and gives every other image
an invented score that depends on its bytes alone. A handler decides otherwise::

    def overloaded(request):
        raise status_error("UNAVAILABLE", "Exceeds maximum queue size")

    FakeTransport(overloaded)

Retries, windows, ordering and the contract check are the real ones: only the network is missing.
"""

from __future__ import annotations

import array
import concurrent.futures
import dataclasses
import hashlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from nima_client import contract
from nima_client._status import status_error
from nima_client._transport import (
    InferReply,
    InferRequest,
    ModelDescription,
    PendingReply,
    RejectedImages,
    TensorInfo,
)
from nima_client.contract import Rejection, RejectionCode, ServedModel
from nima_client.errors import DeadlineExceeded, RequestCancelled
from nima_client.preprocess import ImageRejected, inspect_header

__all__ = [
    "FAKE_MODEL",
    "FakeTransport",
    "InferReply",
    "InferRequest",
    "describe_model",
    "fake_distribution",
    "moments",
    "rejected",
    "reply",
    "status_error",
]

Handler = Callable[[InferRequest], InferReply | Awaitable[InferReply]]
"""Answers a request, or raises an error of :mod:`nima_client.errors`."""

FAKE_MODEL = ServedModel(
    contract_version=contract.CONTRACT_VERSION,
    checkpoint_name="fake",
    checkpoint_sha256="0" * 64,
    preprocessing_id="fake",
    reference_set="101 evenly spaced means",
    reference_quantiles=tuple(round(1.0 + 0.09 * i, 2) for i in range(101)),
)
"""What the fake says it serves."""


def fake_distribution(image: bytes) -> tuple[float, ...]:
    """Ten probabilities that depend on the bytes of the image alone."""
    digest = hashlib.sha256(image).digest()
    weights = [1.0 + byte for byte in digest[: contract.NUM_RATINGS]]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def moments(distribution: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a distribution over the ratings 1..10."""
    mean = sum(r * p for r, p in zip(contract.RATINGS, distribution, strict=True))
    variance = sum(p * (r - mean) ** 2 for r, p in zip(contract.RATINGS, distribution, strict=True))
    return mean, variance**0.5


def reply(
    request: InferRequest,
    distributions: Sequence[Sequence[float]] | None = None,
    *,
    model_version: str = "1",
) -> InferReply:
    """An answer to a request.

    Args:
        request: what came in.
        distributions: ten probabilities for each of its images; None invents them.
        model_version: version that pretends to have answered.
    """
    if distributions is None:
        distributions = [fake_distribution(image) for image in request.images]
    both = [moments(d) for d in distributions]
    return InferReply(
        distributions=tuple(_as_sent(d) for d in distributions),
        means=_as_sent([mean for mean, _ in both]),
        stds=_as_sent([std for _, std in both]),
        model_name=request.model_name,
        model_version=model_version,
        request_id=request.request_id,
    )


def _as_sent(values: Sequence[float]) -> tuple[float, ...]:
    """Values as they come out of the wire: in single precision."""
    return tuple(array.array("f", values))


def rejected(codes: Mapping[int, RejectionCode], request_id: str = "") -> RejectedImages:
    """The error of a server that refuses the images with these indices in the request."""
    rows = (Rejection(index, code, "refused by the test") for index, code in sorted(codes.items()))
    return RejectedImages(tuple(rows), request_id=request_id)


def describe_model(
    served: ServedModel = FAKE_MODEL,
    *,
    versions: tuple[str, ...] = ("1",),
    input_type: str = "BYTES",
) -> ModelDescription:
    """The metadata and config that a NIMA server would send."""
    return ModelDescription(
        name=contract.MODEL_NAME,
        versions=versions,
        inputs=(TensorInfo(contract.INPUT_IMAGE, input_type, (-1, 1)),),
        outputs=(
            TensorInfo(contract.OUTPUT_DISTRIBUTION, "FP32", (-1, contract.NUM_RATINGS)),
            TensorInfo(contract.OUTPUT_MEAN, "FP32", (-1, 1)),
            TensorInfo(contract.OUTPUT_STD, "FP32", (-1, 1)),
        ),
        parameters=served.to_parameters(),
        max_batch_size=contract.MAX_BATCH_SIZE,
    )


def answer(request: InferRequest) -> InferReply:
    """The default handler: refuse what a server refuses, invent a score for the rest."""
    refused = []
    for index, image in enumerate(request.images):
        try:
            inspect_header(image)
        except ImageRejected as error:
            refused.append(Rejection(index, error.code, error.detail))
    if refused:
        raise RejectedImages(tuple(refused), request_id=request.request_id)
    return reply(request)


class FakeTransport:
    """Stands in for the connection of a ``NimaClient`` or an ``AsyncNimaClient``.

    Args:
        handler: answers each request, or raises; an async client takes a coroutine function too.
        description: what the server says of its model; may be replaced at any time.
        workers: requests that a ``NimaClient`` has answered at the same time, each in a thread.

    Attributes:
        requests: every request so far, in the order of sending.
        description: see above.
        closed: whether the client has closed it.
    """

    def __init__(
        self,
        handler: Handler = answer,
        *,
        description: ModelDescription | None = None,
        workers: int = 1,
    ) -> None:
        self.requests: list[InferRequest] = []
        self.description = description or describe_model()
        self.closed = False
        self._handler = handler
        self._workers = workers
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    # -- for NimaClient ------------------------------------------------------------------------

    def describe(self, model_name: str, model_version: str, timeout_s: float) -> ModelDescription:
        """The description, whatever the name."""
        self._check_open()
        return dataclasses.replace(self.description, name=model_name)

    def infer(self, request: InferRequest) -> InferReply:
        """Answer in the calling thread."""
        self._record(request)
        return self._sync(request)

    def submit(self, request: InferRequest) -> PendingReply:
        """Answer in a worker thread."""
        self._record(request)
        with self._lock:
            self._check_open()  # closed by another thread meanwhile
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(self._workers)
            return _Pending(self._pool.submit(self._sync, request), request)

    def close(self) -> None:
        """Refuse further requests."""
        with self._lock:
            self.closed = True
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    # -- for AsyncNimaClient -------------------------------------------------------------------

    async def describe_async(
        self, model_name: str, model_version: str, timeout_s: float
    ) -> ModelDescription:
        """The description, whatever the name."""
        return self.describe(model_name, model_version, timeout_s)

    async def infer_async(self, request: InferRequest) -> InferReply:
        """Answer in the event loop; an awaitable answer is awaited, for as long as it may take."""
        import asyncio

        self._record(request)
        given: Any = self._handler(request)
        if not inspect.isawaitable(given):
            return _checked(given)
        try:
            return _checked(await asyncio.wait_for(given, request.timeout_s))
        except asyncio.TimeoutError:
            raise DeadlineExceeded("timed out", request_id=request.request_id) from None

    async def close_async(self) -> None:
        """Refuse further requests."""
        self.close()

    # -- inside --------------------------------------------------------------------------------

    def _record(self, request: InferRequest) -> None:
        self._check_open()
        with self._lock:
            self.requests.append(request)

    def _check_open(self) -> None:
        if self.closed:
            raise RequestCancelled("the client is closed")

    def _sync(self, request: InferRequest) -> InferReply:
        given = self._handler(request)
        if inspect.iscoroutine(given):
            given.close()
            raise TypeError("a NimaClient cannot use a coroutine function as handler")
        return _checked(given)


def _checked(given: object) -> InferReply:
    if not isinstance(given, InferReply):
        raise TypeError(f"the handler must return an InferReply, not {type(given).__name__}")
    return given


class _Pending:
    def __init__(
        self, future: concurrent.futures.Future[InferReply], request: InferRequest
    ) -> None:
        self._future = future
        self._request = request

    def add_done_callback(self, callback: Callable[[PendingReply], None]) -> None:
        self._future.add_done_callback(lambda _: callback(self))

    def result(self) -> InferReply:
        try:
            return self._future.result()
        except concurrent.futures.CancelledError:
            raise RequestCancelled(
                "the request was cancelled", request_id=self._request.request_id
            ) from None

    def cancel(self) -> None:
        self._future.cancel()
