"""A gRPC server that speaks the KServe v2 protocol inside the test process.

It misbehaves on request: any status and text, slow answers, dropped connections, drains. Scores are
those of ``nima_client.testing``, so that the same assertions hold on the fake and on this server.
An image that contains ``REFUSE`` passes the client's own check and is refused here.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from nima_client import contract
from nima_client.contract import Rejection, RejectionCode, format_rejections
from nima_client.preprocess import ImageRejected, inspect_header
from nima_client.testing import describe_model, fake_distribution, moments

REFUSE = b"REFUSE"
Behaviour = Callable[[int, list[bytes], grpc.ServicerContext], None]
"""Called with the number of the request (from 1), its images and the context; may abort."""


class KServeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The server. ``behaviour`` and ``description`` may be replaced while it runs."""

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        port: int = 0,
        credentials: Any = None,
        most_bytes: int = -1,
    ) -> None:
        self.behaviour = behaviour
        self.description = describe_model()
        self.model_version = "1"
        self.delay = 0.0
        self.describe_delay = 0.0
        self.metadata: list[dict[str, str]] = []
        self.request_ids: list[str] = []
        self.timeouts_us: list[int] = []
        self.batches: list[list[bytes]] = []
        self.describes = 0
        self.cancelled = 0
        self.active = 0
        self.peak = 0
        self.keep = True
        self._count = 0
        self._lock = threading.Lock()
        self.server = grpc.server(
            futures.ThreadPoolExecutor(64),
            options=[
                ("grpc.max_receive_message_length", most_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 300_000),
            ],
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self.server.add_insecure_port(address)
        else:
            self.port = self.server.add_secure_port(address, credentials)
        self.server.start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self, grace: float | None = 0) -> None:
        self.server.stop(grace).wait()

    def __enter__(self) -> KServeServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- the protocol --------------------------------------------------------------------------

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.describes += 1
        self._note(context)
        self._sleep(self.describe_delay, context)
        model = self.description
        if request.name != model.name:
            self._unknown(request, context)
        response = service_pb2.ModelMetadataResponse(name=model.name, versions=model.versions)
        for mine, theirs in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for tensor in mine:
                theirs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._sleep(self.describe_delay, context)
        if request.name != self.description.name:
            self._unknown(request, context)
        config = model_config_pb2.ModelConfig(
            name=self.description.name, max_batch_size=self.description.max_batch_size
        )
        for key, value in self.description.parameters.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        images = read_images(request)
        with self._lock:
            self._count += 1
            number = self._count
            self.active += 1
            self.peak = max(self.peak, self.active)
            if self.keep:
                self.request_ids.append(request.id)
                self.timeouts_us.append(request.parameters["timeout"].int64_param)
                self.batches.append(images)
                self._note(context)
        try:
            if self.delay:
                self._sleep(self.delay, context)
            if self.behaviour is not None:
                self.behaviour(number, images, context)
            self._refuse(images, context)
            return self._answer(request, images)
        finally:
            with self._lock:
                self.active -= 1

    # -- inside --------------------------------------------------------------------------------

    def _note(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))

    def _unknown(self, request: Any, context: Any) -> None:
        context.abort(
            grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found"
        )

    def _sleep(self, seconds: float, context: Any) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not context.is_active():
                with self._lock:
                    self.cancelled += 1
                context.abort(grpc.StatusCode.CANCELLED, "gone")
            time.sleep(0.005)

    def _refuse(self, images: list[bytes], context: Any) -> None:
        bad = []
        for index, image in enumerate(images):
            try:
                inspect_header(image)
            except ImageRejected as error:
                bad.append(Rejection(index, error.code, error.detail))
            else:
                if REFUSE in image:
                    bad.append(Rejection(index, RejectionCode.UNDECODABLE, "refused by the test"))
        if bad:
            text = "in ensemble 'nima', " + format_rejections(bad)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)

    def _answer(self, request: Any, images: list[bytes]) -> Any:
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=self.model_version, id=request.id
        )
        distributions = [fake_distribution(image) for image in images]
        both = [moments(d) for d in distributions]
        columns = {
            contract.OUTPUT_DISTRIBUTION: distributions,
            contract.OUTPUT_MEAN: [(mean,) for mean, _ in both],
            contract.OUTPUT_STD: [(std,) for _, std in both],
        }
        for name, rows in columns.items():
            width = len(rows[0])
            response.outputs.add(name=name, datatype="FP32", shape=[len(rows), width])
            flat = [value for row in rows for value in row]
            response.raw_output_contents.append(struct.pack(f"<{len(flat)}f", *flat))
        return response


def read_images(request: Any) -> list[bytes]:
    """The images out of a request, as a server reads them."""
    (tensor,), (raw,) = request.inputs, request.raw_input_contents
    if tensor.datatype == "UINT8":
        assert list(tensor.shape) == [1, len(raw)]
        return [raw]
    images, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        images.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    assert list(tensor.shape) == [len(images), 1]
    return images
