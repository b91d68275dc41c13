"""Answers that are none: cut off, damaged, too short."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from kserve_server import KServeServer
from tritonclient.grpc import service_pb2

from nima_client import NO_RETRIES, ContractError, ImageFailure, ImageScore, ModelError, NimaClient

Make = Callable[..., Any]


@contextlib.contextmanager
def broken_server(
    which: str, sent: list[bytes], packed: grpc.Compression = grpc.Compression.NoCompression
) -> Iterator[str]:
    """One of its calls ends well, with none or any bytes in the place of its message."""
    with KServeServer() as good:
        methods: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(good, name), getattr(service_pb2, f"{name}Request").FromString, bytes_of
            )
            for name in ("ModelMetadata", "ModelConfig", "ModelInfer")
        }
        methods[which] = grpc.unary_stream_rpc_method_handler(lambda *_: iter(sent))
        options = [("grpc.so_reuseport", 0)]
        server = grpc.server(ThreadPoolExecutor(2), options=options, compression=packed)
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)
        server.add_generic_rpc_handlers([service])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


def bytes_of(message: Any) -> bytes:
    return bytes(message.SerializeToString())


@pytest.mark.parametrize("which", ["ModelMetadata", "ModelConfig", "ModelInfer"])
@pytest.mark.parametrize("sent", [[], [b"\xff"]], ids=["nothing", "no protobuf"])
def test_an_answer_that_is_none_is_an_error_of_the_server(
    caller: Make, photo: Make, which: str, sent: list[bytes]
) -> None:
    with broken_server(which, sent) as url:
        client = caller(url, retry=NO_RETRIES)
        with pytest.raises(ModelError) as caught:
            client.score_one(photo(0))
    assert caught.value.retryable


def refused_answer(server: KServeServer, data: bytes, spoil: Callable[[Any], None]) -> str:
    """What the client says of an answer that was spoilt on its way."""
    answer = server._answer

    def spoilt(request: Any, images: list[bytes]) -> Any:
        response = answer(request, images)
        spoil(response)
        return response

    server._answer = spoilt  # type: ignore[method-assign]
    with NimaClient(server.url) as client, pytest.raises(ContractError) as caught:
        client.score_one(data)
    return str(caught.value)


def test_an_answer_of_too_few_numbers_counts_them(server: KServeServer, photo: Make) -> None:
    def shorten(response: Any) -> None:
        response.raw_output_contents[0] = response.raw_output_contents[0][:-4]

    said = refused_answer(server, photo(0), shorten)
    assert re.search(r"9 probabilities, 1 means .* for 1 images", said)


def test_an_answer_without_an_output_says_which(server: KServeServer, photo: Make) -> None:
    def leave_out(response: Any) -> None:
        del response.outputs[2], response.raw_output_contents[2]

    said = refused_answer(server, photo(0), leave_out)
    assert re.search(r"not of this contract: it has no output STD \[", said)


@pytest.mark.parametrize(("output", "value"), [(0, -3.0), (0, 2.0), (1, 50.0), (1, 0.0), (2, -1.0)])
def test_an_answer_that_no_score_can_be_is_not_taken_for_one(
    server: KServeServer, photo: Make, output: int, value: float
) -> None:
    answer = server._answer

    def lie(request: Any, images: list[bytes]) -> Any:
        response = answer(request, images)
        if photo(1) in images:
            numbers = len(response.raw_output_contents[output]) // 4
            response.raw_output_contents[output] = struct.pack("<f", value) * numbers
        return response

    server._answer = lie  # type: ignore[method-assign]
    with NimaClient(server.url) as client:
        good, bad = client.score([photo(0), photo(1)], on_error="return")
    assert isinstance(good, ImageScore)
    assert isinstance(bad, ImageFailure)
    assert (bad.code, "cannot be" in bad.message) == ("MODEL", True)


# Whole messages, but for a field that nobody reads: without a limit they would be taken.
FILLING = b"\xfa\x3f" + b"\x80\x80\x80\x04" + bytes(8 << 20)  # field 1023, 8 MiB


@pytest.mark.parametrize("which", ["ModelMetadata", "ModelConfig", "ModelInfer"])
@pytest.mark.parametrize("packed", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_an_answer_that_would_fill_the_memory_is_not_taken(
    caller: Make, photo: Make, which: str, packed: grpc.Compression
) -> None:
    with broken_server(which, [FILLING], packed) as url:
        client = caller(url, retry=NO_RETRIES)
        with pytest.raises(ContractError, match="far larger than one of NIMA") as caught:
            client.score_one(photo(0))
    assert not caught.value.retryable


def test_a_server_that_says_much_of_its_model_is_heard(
    server: KServeServer, caller: Make, photo: Make
) -> None:
    server.description.parameters["notes"] = "x" * (2 << 20)
    assert 1 <= caller(server.url).score_one(photo(0)).mean <= 10
