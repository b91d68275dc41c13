"""Options are checked when a client is made, not at its first call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from kserve_server import KServeServer

from nima_client import TLS, AsyncNimaClient, NimaClient, RetryPolicy
from nima_client._connection import Connection
from nima_client.testing import FakeTransport

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bearer_token": "secret\ntoken"}, "'authorization'"),
        ({"bearer_token": "sécret"}, "'authorization'"),
        ({"bearer_token": " \n"}, "bearer_token is empty"),
        ({"headers": {"X-Key": "secret\r\n"}}, "'X-Key'"),
        ({"headers": {"X-Key": b"secret"}}, "'X-Key'"),
        ({"headers": {"two words": "secret"}}, "name of a header"),
        ({"headers": {"": "secret"}}, "name of a header"),
        ({"headers": {"x-key-bin": "secret"}}, "binary"),
        ({"compression": "zstd"}, "'gzip', 'deflate' or None, not 'zstd'"),
        ({"connect_timeout": None}, "connect_timeout"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"connect_timeout": float("nan")}, "connect_timeout"),
        ({"request_timeout": -1.0}, "request_timeout"),
        ({"request_timeout": "30"}, "request_timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": 1e10}, "at most 1e"),
        ({"connect_timeout": 1e10}, "at most 1e"),
        ({"keepalive_s": 0}, "keepalive_s"),
        ({"request_size": 0}, "request_size"),
        ({"request_size": 2.5}, "request_size"),
        ({"max_in_flight": None}, "max_in_flight"),
        ({"max_side": "448"}, "max_side"),
    ],
)
@pytest.mark.parametrize("kind", [NimaClient, AsyncNimaClient])
def test_impossible_options_are_refused_at_once(kind: Make, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        kind("127.0.0.1:8001", **options)
    # What may be a secret is not repeated.
    assert "secret" not in str(caught.value)
    assert "sécret" not in str(caught.value)


def test_tls_is_a_tls() -> None:
    with pytest.raises(TypeError, match="TLS"):
        NimaClient("127.0.0.1:8001", tls=True)  # type: ignore[arg-type]
    assert NimaClient("127.0.0.1:8001", tls=TLS()).url == "127.0.0.1:8001"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry": 3}, "retry must be a RetryPolicy, not int"),
        ({"retry": 0}, "retry must be a RetryPolicy"),
        ({"limits": 1000}, "limits must be a Limits"),
        ({"bearer_token": b"secret"}, "bearer_token must be a str, not bytes"),
        ({"url": 8001}, "url must be a str"),
        ({"model_version": 1}, "model_version must be a str"),
    ],
)
@pytest.mark.parametrize("kind", [NimaClient, AsyncNimaClient])
def test_options_of_another_type_are_refused_at_once(
    kind: Make, options: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        kind(**options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["budget_s", "initial_backoff_s", "max_backoff_s", "multiplier"])
def test_a_policy_of_no_numbers_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be|must not"):
        RetryPolicy(**{name: float("nan")})


def test_options_that_may_be_absent_may_be_absent() -> None:
    client = NimaClient(request_timeout=None, timeout=None, keepalive_s=None, compression=None)
    assert client.with_options(max_side=None, request_size=None, timeout=None)
    assert Connection("h:1", headers={"x-empty": ""}).metadata == (("x-empty", ""),)


@pytest.mark.parametrize("kind", [NimaClient, AsyncNimaClient])
def test_a_client_that_is_pickled_says_what_to_do_instead(kind: Make) -> None:
    client = kind("127.0.0.1:1", bearer_token="secret")
    for send in (pickle.dumps, copy.deepcopy, lambda c: pickle.dumps(c.score_one)):
        with pytest.raises(TypeError, match=r"cannot be pickled.*Make one in each process") as told:
            send(client)
        assert "secret" not in str(told.value)
    assert copy.copy(client).url == client.with_options(timeout=1.0).url == "127.0.0.1:1"


def test_a_header_in_two_spellings_is_sent_once() -> None:
    client = NimaClient("h:1", headers={"Authorization": "old", "X": "1"}, bearer_token="new")
    assert client._connection.metadata == (("authorization", "Bearer new"), ("x", "1"))


def test_no_secret_is_printed_with_a_connection() -> None:
    client = NimaClient("h:1", bearer_token="t0ken", headers={"x-key": "s3cret"})
    printed = repr(client) + repr(vars(client))
    assert "t0ken" not in printed
    assert "s3cret" not in printed


def test_a_token_out_of_a_file_may_end_with_its_line(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    caller(server.url, bearer_token=" t0ken\n").score_one(photo(0))
    assert {sent["authorization"] for sent in server.metadata} == {"Bearer t0ken"}


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e10, "5", True])
def test_a_timeout_that_is_none_is_refused_by_a_call(
    caller: Make, photo: Make, timeout: Any
) -> None:
    client = caller(transport=FakeTransport())
    with pytest.raises(ValueError, match="timeout must be a number of seconds"):
        client.score([photo(0)], timeout=timeout)
    with pytest.raises(ValueError, match="timeout must be a number of seconds"):
        list(client.score_iter([photo(0)], timeout=timeout))
    with pytest.raises(ValueError, match="timeout must be a number of seconds"):
        client.score_one(photo(0), timeout=timeout)


def test_times_may_be_very_long_or_over(caller: Make, server: KServeServer, photo: Make) -> None:
    longest = dict.fromkeys(("connect_timeout", "request_timeout", "timeout", "keepalive_s"), 1e9)
    client = caller(server.url, **longest)
    images = [photo(i) for i in range(3)]
    assert len(client.score(images)) == 3
    assert client.score_one(images[0]).mean
    for over in (0, -1.5):
        results = client.score(images, timeout=over, on_error="return")
        assert [r.code for r in results] == ["DEADLINE"] * 3
