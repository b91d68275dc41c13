"""The seam between the client's logic and a connection.

Anything with these methods serves: gRPC (:mod:`nima_client._grpc`, :mod:`nima_client._grpc_aio`)
and the fake for users' tests (:mod:`nima_client.testing`). A transport knows the protocol; it knows
nothing of retries, windows or results. What goes wrong it raises as a
:class:`nima_client.errors.RequestError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from nima_client.contract import MODEL_NAME, NUM_RATINGS, Rejection
from nima_client.errors import ImageRejectedError


class RejectedImages(ImageRejectedError):
    """A request failed because of some of its images; each is named.

    Attributes:
        rejections: the refused images by their index *in the request*; never empty.
    """

    def __init__(self, rejections: tuple[Rejection, ...] = (), *, request_id: str = "") -> None:
        codes = ", ".join(f"image {r.index}: {r.code.value}" for r in rejections)
        super().__init__(f"the server refused {codes}", request_id=request_id)
        self.rejections = rejections
        self.args = (rejections,)  # of which pickle makes it again


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model's metadata.

    Attributes:
        name: its name.
        datatype: Triton's name of the type, e.g. ``"BYTES"``, ``"FP32"``.
        shape: dimensions, the batch dimension included; -1 for variable.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a server tells of one model (Triton's ModelMetadata and ModelConfig calls).

    Attributes:
        name: model name.
        versions: loaded versions.
        inputs: input tensors.
        outputs: output tensors.
        parameters: string parameters of the model's config.
        max_batch_size: largest batch of the config; 0 for none.
    """

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    max_batch_size: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request as it goes out.

    Attributes:
        images: encoded files, one a row of the batch.
        request_id: id for logs on both sides.
        input_type: ``"BYTES"`` or ``"UINT8"`` (then exactly one image).
        timeout_s: seconds until the caller loses interest (gRPC's deadline); None waits.
        queue_timeout_s: seconds of them that it may wait in the server's queue (Triton's request
            parameter ``timeout``); None leaves that to the server.
        headers: extra metadata of this request (trace context), lower-case keys.
        model_name: Triton model asked.
        model_version: its version; empty lets the server choose.
    """

    images: tuple[bytes, ...]
    request_id: str
    input_type: str = "BYTES"
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()
    model_name: str = MODEL_NAME
    model_version: str = ""


@dataclass(frozen=True, slots=True)
class InferReply:
    """The answer to one request, row by row as the images went out.

    Attributes:
        distributions: ten probabilities for each image.
        means: one mean for each image, 1..10.
        stds: one standard deviation for each image, 0..4.5.
        model_name: model that answered.
        model_version: its version.
        request_id: id echoed by the server.
    """

    distributions: tuple[tuple[float, ...], ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    model_name: str = MODEL_NAME
    model_version: str = "1"
    request_id: str = ""

    def __post_init__(self) -> None:
        rows = len(self.distributions)
        if len(self.means) != rows or len(self.stds) != rows:
            raise ValueError("distributions, means and stds must have one entry for each image")
        if any(len(d) != NUM_RATINGS for d in self.distributions):
            raise ValueError(f"a distribution has {NUM_RATINGS} probabilities")


class PendingReply(Protocol):
    """A request under way."""

    def add_done_callback(self, callback: Callable[[PendingReply], None]) -> None:
        """Call back once, from any thread, when the answer or the error is there."""

    def result(self) -> InferReply:
        """The answer, once done.

        Raises:
            RequestError: what went wrong.
        """

    def cancel(self) -> None:
        """Tell the server that nobody waits any more. Harmless when done."""


class Transport(Protocol):
    """Connection used by :class:`nima_client.NimaClient`; any thread may call its methods."""

    def describe(self, model_name: str, model_version: str, timeout_s: float) -> ModelDescription:
        """Ask the server what the model is; all of it may take ``timeout_s`` seconds."""

    def infer(self, request: InferRequest) -> InferReply:
        """Send one request and wait for its answer."""

    def submit(self, request: InferRequest) -> PendingReply:
        """Send one request; return at once."""

    def close(self) -> None:
        """Close the connection; requests under way end with :class:`RequestCancelled`."""


class AsyncTransport(Protocol):
    """Connection used by :class:`nima_client.AsyncNimaClient`, inside one event loop."""

    async def describe_async(
        self, model_name: str, model_version: str, timeout_s: float
    ) -> ModelDescription:
        """Ask the server what the model is; all of it may take ``timeout_s`` seconds."""

    async def infer_async(self, request: InferRequest) -> InferReply:
        """Send one request and wait for its answer; cancelling the task cancels the request."""

    async def close_async(self) -> None:
        """Close the connection; requests under way end with :class:`RequestCancelled`."""
