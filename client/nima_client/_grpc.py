"""The gRPC transport for threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nima_client import _wire
from nima_client._connection import Connection
from nima_client._transport import InferReply, InferRequest, ModelDescription, PendingReply
from nima_client.errors import RequestCancelled

if TYPE_CHECKING:
    import grpc

_Calls = tuple[Any, Any]
"""The stub of a channel, and its call that takes encoded requests."""


class GrpcTransport:
    """One channel, opened at first use, so that importing and constructing stay light.

    Thread-safe. After ``os.fork`` a child that uses a transport of its parent opens a channel of
    its own; the parent's stays untouched.

    What a signal handler raises inside gRPC (Ctrl-C, an interrupted notebook cell) leaves a channel
    that counts its calls wrongly: later ones are never answered, closing it never ends. Such a
    channel is given up, and the next request opens another.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._compression: Any = None
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._calls: _Calls | None = None
        self._pid = 0
        self._closed = False

    def describe(self, model_name: str, model_version: str, timeout_s: float) -> ModelDescription:
        """Model metadata and config; see :class:`nima_client._transport.Transport`."""
        import grpc
        from tritonclient.grpc import service_pb2

        calls = self._connect()
        stub, _ = calls
        metadata = self._connection.metadata
        key = {"name": model_name, "version": model_version}
        facts = service_pb2.ModelMetadataRequest(**key)
        settings = service_pb2.ModelConfigRequest(**key)
        end = time.monotonic() + timeout_s
        try:
            model = stub.ModelMetadata(facts, timeout=timeout_s, metadata=metadata)
            left = max(0.0, end - time.monotonic())
            config = stub.ModelConfig(settings, timeout=left, metadata=metadata)
        except grpc.RpcError as failure:
            raise _wire.error_of(failure, self._connection.target) from failure
        except ValueError as error:  # the channel was closed by another thread
            raise RequestCancelled(str(error)) from error
        except BaseException:
            self._give_up(calls)
            raise
        return _wire.description(model, config)

    def infer(self, request: InferRequest) -> InferReply:
        """Send and wait."""
        import grpc

        calls = self._connect()
        _, infer = calls
        try:
            response = infer(_wire.encode_request(request), **self._call_options(request))
        except grpc.RpcError as failure:
            raise _wire.error_of(failure, self._connection.target, request.request_id) from failure
        except ValueError as error:  # the channel was closed by another thread
            raise RequestCancelled(str(error), request_id=request.request_id) from error
        except BaseException:
            self._give_up(calls)
            raise
        return _wire.parse_reply(response, request)

    def submit(self, request: InferRequest) -> PendingReply:
        """Send, and return at once."""
        calls = self._connect()
        _, infer = calls
        try:
            call = infer.future(_wire.encode_request(request), **self._call_options(request))
        except ValueError as error:
            raise RequestCancelled(str(error), request_id=request.request_id) from error
        except BaseException:
            self._give_up(calls)
            raise
        return _Pending(call, request, self._connection.target, lambda: self._give_up(calls))

    def close(self) -> None:
        """Close the channel; requests under way are cancelled."""
        with self._lock:
            self._closed = True
            channel, self._channel, self._calls = self._channel, None, None
        if channel is not None and self._pid == os.getpid():
            try:
                channel.close()
            except BaseException:
                _close_aside(channel)
                raise

    def _give_up(self, calls: _Calls) -> None:
        """Let go of the channel of these calls, which an exception went through.

        Its requests are cancelled.
        """
        with self._lock:
            if self._calls is not calls:  # let go of already
                return
            channel, self._channel, self._calls = self._channel, None, None
        if channel is not None and self._pid == os.getpid():
            _close_aside(channel)

    def _call_options(self, request: InferRequest) -> dict[str, Any]:
        return {
            "timeout": request.timeout_s,
            "metadata": self._connection.metadata + request.headers,
            "compression": self._compression,
        }

    def _connect(self) -> _Calls:
        """The stub, and the call that takes encoded requests."""
        calls = self._calls
        if calls is not None and self._pid == os.getpid():
            return calls
        with self._lock:
            if self._closed:
                raise RequestCancelled("the client is closed")
            if self._calls is None or self._pid != os.getpid():
                from tritonclient.grpc import service_pb2_grpc

                self._channel = open_channel(self._connection)
                self._compression = compression(self._connection.compression)
                stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
                self._calls = stub, _wire.infer_method(self._channel)
                self._pid = os.getpid()
            return self._calls


def _close_aside(channel: grpc.Channel) -> None:
    """Close a channel in a thread of its own, as it may wait for ever."""
    threading.Thread(target=channel.close, daemon=True).start()


class _Pending:
    """A request under way; see :class:`nima_client._transport.PendingReply`."""

    def __init__(
        self, call: Any, request: InferRequest, target: str, give_up: Callable[[], None]
    ) -> None:
        self._call = call
        self._request = request
        self._target = target
        self._give_up = give_up

    def add_done_callback(self, callback: Callable[[PendingReply], None]) -> None:
        try:
            self._call.add_done_callback(lambda _: callback(self))
        except BaseException:
            self._give_up()
            raise

    def result(self) -> InferReply:
        import grpc

        try:
            response = self._call.result()
        except grpc.RpcError as failure:
            raise _wire.error_of(failure, self._target, self._request.request_id) from failure
        except grpc.FutureCancelledError as error:
            raise RequestCancelled(
                "the request was cancelled", request_id=self._request.request_id
            ) from error
        except BaseException:
            self._give_up()
            raise
        return _wire.parse_reply(response, self._request)

    def cancel(self) -> None:
        try:
            self._call.cancel()
        except BaseException:
            self._give_up()
            raise


def open_channel(connection: Connection, *, asynchronous: bool = False) -> Any:
    """A ``grpc.Channel``, or a ``grpc.aio.Channel``, for a connection."""
    import grpc

    # grpc.aio's functions have the same names and arguments.
    make: Any = grpc.aio if asynchronous else grpc
    options = connection.channel_options()
    if connection.tls is None:
        return make.insecure_channel(connection.target, options=options)
    root, key, chain = connection.tls.read()
    credentials = grpc.ssl_channel_credentials(root, key, chain)
    return make.secure_channel(connection.target, credentials, options=options)


def compression(name: str | None) -> Any:
    """The constant that gRPC has for a compression."""
    import grpc

    if name is None:
        return None
    return {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}[name]
