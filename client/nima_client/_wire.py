"""Requests and replies as protobuf messages of the KServe v2 protocol, for both gRPC transports.

The generated messages and stubs come from tritonclient; its ``InferenceServerClient`` is not used,
because it hides status details, futures and metadata that the client needs.
"""

from __future__ import annotations

import array
import functools
import struct
import sys
from typing import TYPE_CHECKING, Any

from nima_client import contract
from nima_client._address import proxy_of
from nima_client._status import status_error
from nima_client._transport import InferReply, InferRequest, ModelDescription, TensorInfo
from nima_client.errors import ConnectError, ContractError, ModelError, RequestError

if TYPE_CHECKING:
    import grpc

_OUTPUTS = (contract.OUTPUT_DISTRIBUTION, contract.OUTPUT_MEAN, contract.OUTPUT_STD)
_LENGTH = struct.Struct("<I")
# Field 7 of ModelInferRequest, raw_input_contents, of wire type 2: a length, then that many bytes.
_CONTENTS_TAG = bytes((7 << 3 | 2,))


def infer_method(channel: Any) -> Any:
    """The ModelInfer call of a channel (``grpc`` or ``grpc.aio``), which takes encoded requests."""
    from tritonclient.grpc import service_pb2

    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=None,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def encode_request(request: InferRequest) -> bytes:
    """One request as the bytes of a ModelInferRequest.

    The images are by far most of it. Put through protobuf they would be copied three times; a
    message's encoded fields may be joined in any order (protobuf's encoding guide), so that the
    field that holds them is written here, with one copy.
    """
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferRequest(id=request.request_id)
    if request.queue_timeout_s is not None:
        # Triton's queue policies read this one, in microseconds; gRPC's own deadline ends the call.
        message.parameters["timeout"].int64_param = max(1, int(request.queue_timeout_s * 1e6))
    if request.input_type == "UINT8":
        (image,) = request.images
        shape = (1, len(image))
        contents = [image]
    else:
        shape = (len(request.images), 1)
        contents = [p for image in request.images for p in (_LENGTH.pack(len(image)), image)]
    head = _head(request.model_name, request.model_version, request.input_type, shape)
    size = _varint(sum(map(len, contents)))
    return b"".join((head, message.SerializeToString(), _CONTENTS_TAG, size, *contents))


@functools.lru_cache(maxsize=64)
def _head(model_name: str, model_version: str, input_type: str, shape: tuple[int, int]) -> bytes:
    """The part of a request that is the same in the next one."""
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferRequest(model_name=model_name, model_version=model_version)
    message.inputs.add(name=contract.INPUT_IMAGE, datatype=input_type, shape=shape)
    for name in _OUTPUTS:
        message.outputs.add(name=name)
    return bytes(message.SerializeToString())


def _varint(number: int) -> bytes:
    """Protobuf's encoding of a length: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def parse_reply(response: Any, request: InferRequest) -> InferReply:
    """The answer out of a ModelInferResponse.

    Raises:
        ContractError: outputs are missing or of another shape.
        ModelError: there is no message, or none that can be read.
    """
    response = _whole(response, request.request_id)
    rows = len(request.images)
    raw = dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=False))
    try:
        if missing := [name for name in _OUTPUTS if name not in raw]:
            raise ValueError(f"it has no output {' and no output '.join(missing)}")
        flat, means, stds = (_floats(raw[name]) for name in _OUTPUTS)
        bins = contract.NUM_RATINGS
        if (len(flat), len(means), len(stds)) != (rows * bins, rows, rows):
            raise ValueError(
                f"{len(flat)} probabilities, {len(means)} means and {len(stds)} standard "
                f"deviations for {rows} images"
            )
    except ValueError as error:
        raise ContractError(
            f"the server's answer is not of this contract: {error}", request_id=request.request_id
        ) from None
    return InferReply(
        distributions=tuple(tuple(flat[i : i + bins]) for i in range(0, rows * bins, bins)),
        means=tuple(means),
        stds=tuple(stds),
        model_name=response.model_name,
        model_version=response.model_version,
        request_id=response.id or request.request_id,
    )


def _whole(message: Any, request_id: str = "") -> Any:
    """A message of the server, where it is one.

    gRPC gives None for an answer that ends well without a message or in the middle of it; that of
    asyncio also for what is no protobuf.
    """
    if message is None:
        raise ModelError("the server's answer is cut off or damaged", request_id=request_id)
    return message


def _floats(raw: bytes) -> list[float]:
    values = array.array("f", raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def description(metadata: Any, config: Any) -> ModelDescription:
    """A model's description out of ModelMetadataResponse and ModelConfigResponse.

    Raises:
        ModelError: one of them is no message.
    """
    metadata, config = _whole(metadata), _whole(config)
    return ModelDescription(
        name=metadata.name,
        versions=tuple(metadata.versions),
        inputs=_tensors(metadata.inputs),
        outputs=_tensors(metadata.outputs),
        parameters={k: v.string_value for k, v in config.config.parameters.items()},
        max_batch_size=config.config.max_batch_size,
    )


def _tensors(tensors: Any) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(t.name, t.datatype, tuple(t.shape)) for t in tensors)


def error_of(failure: grpc.RpcError, target: str, request_id: str = "") -> RequestError:
    """The exception for a failed gRPC call to a target."""
    status = failure.code().name if hasattr(failure, "code") else "UNKNOWN"
    details = failure.details() if hasattr(failure, "details") else str(failure)
    error = status_error(status, details or "", request_id)
    if isinstance(error, ConnectError) and (proxy := proxy_of(target)) is not None:
        error.message += f"; gRPC went through the proxy {proxy}: no_proxy makes exceptions"
    return error
