"""What both clients share: options, connection and planning."""

from __future__ import annotations

import copy
import dataclasses
import random
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

from nima_client import _defaults
from nima_client._address import normalise_url
from nima_client._attempt import Attempt
from nima_client._connection import TLS, Compression, Connection, bearer, check_seconds
from nima_client._contact import Contact
from nima_client._facts import Facts
from nima_client._images import PrepareOptions, exact_count, expected_count
from nima_client._options import NOT_GIVEN, CallOptions, NotGiven, check_kind
from nima_client._plan import Plan
from nima_client._retry import RetryPolicy
from nima_client._transport import InferRequest
from nima_client.contract import MAX_BATCH_SIZE, MODEL_NAME
from nima_client.errors import (
    DeadlineExceeded,
    RequestCancelled,
    RequestError,
    Stage,
)
from nima_client.preprocess import Limits
from nima_client.results import ModelInfo

C = TypeVar("C", bound="BaseClient")


class BaseClient:
    """Options of :class:`NimaClient` and :class:`AsyncNimaClient`; every default in ``_defaults``.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint; ``grpcs://host:port`` for TLS;
            ``dns:///name:port`` for several servers behind one name, used in turn. None takes
            ``$NIMA_URL``, else ``127.0.0.1:8001``.
        request_size: images in one request; at most what the server allows (32), which is taken
            for more. None takes what the server advises (4 on a CPU, 32 on a GPU), as long as
            there is enough for all of it, in requests of some 2 MB.
        max_in_flight: requests that one call keeps under way at most.
        timeout: seconds that a whole call may take unless it says otherwise; None for any.
        request_timeout: seconds that one request may take; half of them it may spend in the
            server's queue, which is told so.
        connect_timeout: seconds for the first contact, retries included.
        retry: retry policy; ``NO_RETRIES`` turns retries off.
        tls: certificates; ``TLS()`` trusts the public authorities.
        headers: metadata for every call, e.g. of a restricted protocol or an API gateway.
        bearer_token: shorthand for the header ``authorization: Bearer …``; blanks and line ends
            around it do not count.
        keepalive_s: seconds between pings on an idle connection, at least 300 for Triton; None for
            no pings.
        compression: ``"gzip"``, ``"deflate"`` or None.
        limits: largest image, in bytes and in pixels; refused here, before any upload.
        max_side: photos whose longest side is larger, in pixels, are made smaller before upload.
        model_name: Triton model to ask.
        model_version: its version; empty lets the server choose.
        transport: anything with the methods of the transport protocol, instead of gRPC; see
            :mod:`nima_client.testing`.

    Raises:
        ValueError: an option out of range, an address that is none, or a header that gRPC could
            not send (which, but not its value: it may be a secret).
        TypeError: an option of another type.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        request_size: int | None = _defaults.REQUEST_SIZE,
        max_in_flight: int = _defaults.MAX_IN_FLIGHT,
        timeout: float | None = None,
        request_timeout: float | None = _defaults.REQUEST_TIMEOUT_S,
        connect_timeout: float = _defaults.CONNECT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        bearer_token: str | None = None,
        keepalive_s: float | None = _defaults.KEEPALIVE_TIME_S,
        compression: Compression | None = None,
        limits: Limits | None = None,
        max_side: int | None = _defaults.MAX_SIDE,
        model_name: str = MODEL_NAME,
        model_version: str = "",
        transport: Any = None,
    ) -> None:
        self._options = CallOptions(
            request_size=request_size,
            max_in_flight=max_in_flight,
            timeout=timeout,
            request_timeout=request_timeout,
            retry=retry if retry is not None else RetryPolicy(),
            limits=limits if limits is not None else Limits(),
            max_side=max_side,
        )
        url = url if url is not None else _defaults.default_url()
        texts = {"url": url, "model_name": model_name, "model_version": model_version}
        for name, text in texts.items():
            check_kind(name, text, str)
        target, scheme_tls = normalise_url(url)
        all_headers = dict(headers or {})
        if bearer_token is not None:
            # Bytes would be sent as Python writes them.
            check_kind("bearer_token", bearer_token, str)
            all_headers["authorization"] = bearer(bearer_token)
        self._connection = Connection(
            target=target,
            tls=tls if tls is not None else (TLS() if scheme_tls else None),
            headers=all_headers,
            keepalive_s=keepalive_s,
            compression=compression,
        )
        check_seconds("connect_timeout", connect_timeout)
        self._connect_timeout = connect_timeout
        self._model_name = model_name
        self._model_version = model_version
        self._rng = random.Random()
        self._lock = threading.Lock()
        self._facts = Facts()
        self._given_transport = transport

    @property
    def url(self) -> str:
        """The gRPC target."""
        return self._connection.target

    @property
    def _most_under_way(self) -> int:
        """Most images that a stream has read and not given a result for yet."""
        size = self._options.request_size or MAX_BATCH_SIZE
        return (self._options.max_in_flight + 1) * size + max(_defaults.REORDER_WINDOW, size)

    def with_options(
        self: C,
        *,
        request_size: int | NotGiven | None = NOT_GIVEN,
        max_in_flight: int | NotGiven = NOT_GIVEN,
        timeout: float | NotGiven | None = NOT_GIVEN,
        request_timeout: float | NotGiven | None = NOT_GIVEN,
        retry: RetryPolicy | NotGiven = NOT_GIVEN,
        limits: Limits | NotGiven = NOT_GIVEN,
        max_side: int | NotGiven | None = NOT_GIVEN,
    ) -> C:
        """A client that calls with other options over the same connection.

        What is not given stays as it is. Closing either client closes the connection of both.

        Example:
            >>> client.with_options(retry=NO_RETRIES, timeout=0.5).score_one("beach.jpg")
        """
        given = {
            "request_size": request_size, "max_in_flight": max_in_flight, "timeout": timeout,
            "request_timeout": request_timeout, "retry": retry, "limits": limits,
            "max_side": max_side,
        }  # fmt: skip
        changes: dict[str, Any] = {k: v for k, v in given.items() if not isinstance(v, NotGiven)}
        self._transport  # noqa: B018  (made now, so that both have the same one)
        other = copy.copy(self)
        other._options = dataclasses.replace(self._options, **changes)
        return other

    @property
    def _transport(self) -> Any:
        """The connection; making it opens nothing yet."""
        raise NotImplementedError

    @property
    def _prepare_options(self) -> PrepareOptions:
        return PrepareOptions(self._options.limits, self._options.max_side)

    def __copy__(self: C) -> C:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> object:
        kind = type(self).__name__
        raise TypeError(
            f"a {kind} cannot be pickled: it holds a connection. Make one in each process, of the "
            "same options (docs/client-scale-out.md: Ray, Spark, multiprocessing)"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    # -- shared pieces of a call ---------------------------------------------------------------

    def _plan(
        self, info: ModelInfo, deadline: float | None, *, ordered: bool, images: object
    ) -> Plan:
        """The plan of a call with these images."""
        chosen, served = self._options.request_size, info.served
        size = chosen or served.request_size
        count = expected_count(images)
        if chosen is None and count is not None:
            size = min(size, max(1, count // served.instances))
        return Plan(
            # Ragged rows cannot share a UINT8 tensor.
            request_size=1 if info.input_type == "UINT8" else min(size, info.max_batch_size),
            request_bytes=_defaults.MAX_BYTES if chosen else _defaults.ADVISED_REQUEST_BYTES,
            # The next image of a stream may be a long time coming.
            eager=served.instances if chosen is None and exact_count(images) is None else 0,
            max_in_flight=self._options.max_in_flight,
            retry=self._options.retry,
            deadline=deadline,
            ordered=ordered,
            call_id=uuid.uuid4().hex[:12],
            rng=self._rng,
        )

    def _deadline(self, timeout: float | None) -> float | None:
        """Monotonic time at which a call ends; a call's own timeout goes before the client's.

        Raises:
            ValueError: a timeout that is no time.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, over=True)
        seconds = timeout if timeout is not None else self._options.timeout
        return None if seconds is None else time.monotonic() + seconds

    def _request(
        self, attempt: Attempt, plan: Plan, info: ModelInfo, trace: tuple[tuple[str, str], ...]
    ) -> InferRequest:
        timeout = plan.timeout_of(self._options.request_timeout, time.monotonic())
        return InferRequest(
            images=tuple([item.prepared.data for item in attempt.items]),
            request_id=attempt.wire_id,
            input_type=info.input_type,
            timeout_s=timeout,
            queue_timeout_s=None if timeout is None else timeout * _defaults.QUEUE_SHARE,
            headers=trace,
            model_name=self._model_name,
            model_version=self._model_version,
        )

    def _failed(self, plan: Plan, attempt: Attempt, error: RequestError) -> None:
        ended_here = isinstance(error, (DeadlineExceeded, RequestCancelled))
        if error.stage is Stage.TRANSPORT and not ended_here:
            # The server may come back with other weights under the same version number.
            self._facts.forget()
        plan.failed(attempt, error, time.monotonic())

    def _time_for_facts(self, plan: Plan) -> float:
        """Seconds for reading a model's facts again in the middle of a call."""
        left = plan.timeout_of(self._connect_timeout, time.monotonic())
        assert left is not None
        return max(0.001, left)

    def _first_contact(self, deadline: float | None) -> Contact:
        return Contact(self._options.retry, self._rng, self._connect_timeout, deadline)
