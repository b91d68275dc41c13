"""The gRPC transport for asyncio."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from nima_client import _wire
from nima_client._connection import Connection
from nima_client._grpc import compression, open_channel
from nima_client._transport import InferReply, InferRequest, ModelDescription
from nima_client.errors import RequestCancelled

if TYPE_CHECKING:
    import grpc.aio


class AsyncGrpcTransport:
    """One channel, opened at first use, inside the event loop that uses it.

    When that loop has been closed, another one may take over, with a channel of its own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._compression: Any = None
        self._channel: grpc.aio.Channel | None = None
        self._calls: tuple[Any, Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way: set[Any] = set()
        self._closed = False

    async def describe_async(
        self, model_name: str, model_version: str, timeout_s: float
    ) -> ModelDescription:
        """Model metadata and config; see :class:`nima_client._transport.AsyncTransport`."""
        import grpc
        from tritonclient.grpc import service_pb2

        stub, _ = self._connect()
        metadata = self._connection.metadata
        key = {"name": model_name, "version": model_version}
        facts = service_pb2.ModelMetadataRequest(**key)
        settings = service_pb2.ModelConfigRequest(**key)
        end = time.monotonic() + timeout_s
        try:
            model = await self._end(stub.ModelMetadata(facts, timeout=timeout_s, metadata=metadata))
            left = max(0.0, end - time.monotonic())
            config = await self._end(stub.ModelConfig(settings, timeout=left, metadata=metadata))
        except grpc.RpcError as failure:
            raise _wire.error_of(failure, self._connection.target) from failure
        except grpc.aio.UsageError as error:  # the channel was closed meanwhile
            raise RequestCancelled(str(error)) from error
        except asyncio.CancelledError:
            self._check_closed()
            raise
        return _wire.description(model, config)

    async def infer_async(self, request: InferRequest) -> InferReply:
        """Send and wait; cancelling the task cancels the request on the server."""
        import grpc

        _, infer = self._connect()
        try:
            call = infer(
                _wire.encode_request(request),
                timeout=request.timeout_s,
                metadata=self._connection.metadata + request.headers,
                compression=self._compression,
            )
            response = await self._end(call)
        except grpc.RpcError as failure:
            raise _wire.error_of(failure, self._connection.target, request.request_id) from failure
        except grpc.aio.UsageError as error:  # the channel was closed meanwhile
            raise RequestCancelled(str(error), request_id=request.request_id) from error
        except asyncio.CancelledError:
            self._check_closed(request.request_id)
            raise
        return _wire.parse_reply(response, request)

    async def close_async(self) -> None:
        """Close the channel; requests under way are cancelled."""
        self._closed = True
        channel, self._channel, self._calls = self._channel, None, None
        if channel is not None and self._loop is asyncio.get_running_loop():
            await asyncio.gather(*map(_cancel, self._under_way))
            await channel.close()

    async def _end(self, call: Any) -> Any:
        """The answer to a call, which a cancelled task cancels."""
        under_way = self._under_way
        under_way.add(call)
        try:
            await call.code()  # cancelled, it leaves the call alone
        except asyncio.CancelledError:
            await _cancel(call)
            raise
        finally:
            under_way.discard(call)
        return await call

    def _check_closed(self, request_id: str = "") -> None:
        """Tell a closed channel, which cancels its calls, from a task that was cancelled.

        Raises:
            RequestCancelled: the channel was closed, and nobody cancelled the task.
        """
        # Before Python 3.11 a task does not say; then what was closed counts as closed.
        cancelling = getattr(asyncio.current_task(), "cancelling", None)
        if self._closed and not (cancelling is not None and cancelling()):
            raise RequestCancelled("the client was closed", request_id=request_id) from None

    def _connect(self) -> tuple[Any, Any]:
        """The stub, and the call that takes encoded requests."""
        if self._closed:
            raise RequestCancelled("the client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    "this AsyncNimaClient is in use by another event loop: make one for each loop"
                )
            # The channel of a loop that has ended (a second asyncio.run) cannot be used or closed.
            self._channel = self._calls = None
            self._under_way = set()
            self._loop = loop
        if self._calls is None:
            from tritonclient.grpc import service_pb2_grpc

            self._channel = open_channel(self._connection, asynchronous=True)
            self._compression = compression(self._connection.compression)
            stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            self._calls = stub, _wire.infer_method(self._channel)
        return self._calls


async def _cancel(call: Any) -> None:
    """Cancel a call, and wait until gRPC has ended it.

    Cancelled in any other way a call never takes its end out of gRPC: 1 KiB for each is lost, and
    where the event loop closes meanwhile, the next one logs an error of it.
    """
    if hasattr(call, "_cancel"):
        call._cancel("cancelled with its task")
        await asyncio.gather(call, return_exceptions=True)
    else:  # another gRPC than those known
        call.cancel()
