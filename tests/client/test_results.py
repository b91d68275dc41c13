"""Results convert to everything people keep them in; the fake; errors as values."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from kserve_server import KServeServer

import nima_client
from nima_client import (
    AsyncNimaClient,
    ImageFailure,
    ImageScore,
    NimaClient,
    NimaError,
    QueueFull,
    RejectionCode,
    RetryPolicy,
    Stage,
    _defaults,
    errors,
)
from nima_client.preprocess import inspect_header
from nima_client.tables import RECORD_DTYPE, to_arrow, to_numpy, to_pandas
from nima_client.testing import FakeTransport, rejected, reply, status_error

Photo = Callable[..., bytes]


@pytest.fixture
def results(photo: Photo) -> list[Any]:
    with NimaClient(transport=FakeTransport()) as client:
        return client.score([photo(0), b"text", photo(1)], on_error="return")


def test_json_there_and_back(results: list[Any]) -> None:
    score, failure = results[0], results[1]
    fields = json.loads(score.to_json())
    assert ImageScore.from_dict(fields) == score
    assert fields["distribution"] == list(score.distribution)
    fields = json.loads(failure.to_json())
    assert fields["code"] == "UNSUPPORTED"
    assert fields["stage"] == "image"


def test_numpy(results: list[Any]) -> None:
    records = to_numpy(results)
    assert records.dtype == RECORD_DTYPE
    assert records["ok"].tolist() == [True, False, True]
    assert np.isnan(records["mean"][1])
    np.testing.assert_allclose(records["distribution"][0], results[0].distribution, rtol=1e-6)
    assert to_numpy([]).shape == (0,)


def test_pandas_and_arrow(results: list[Any]) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = to_pandas(results)
    assert frame["mean"].dtype == np.float64
    assert frame["mean"].notna().tolist() == [True, False, True]
    assert frame.loc[1, "code"] == "UNSUPPORTED"
    assert np.stack(frame["distribution"].dropna()).shape == (2, 10)
    table = to_arrow(results)
    assert table.num_rows == 3
    assert table.column("distribution").null_count == 1
    assert table.column("mean")[0].as_py() == results[0].mean
    assert to_arrow([]).num_rows == 0
    # The columns' types say nothing of what happens to be in them.
    for some in ([], results[:1], results[1:2]):
        assert to_pandas(some).dtypes.equals(frame.dtypes)
        assert to_pandas(some).index.dtype == frame.index.dtype == np.int64


def test_results_are_values(results: list[Any]) -> None:
    score, failure = results[0], results[1]
    assert pickle.loads(pickle.dumps(score)) == score
    assert pickle.loads(pickle.dumps(failure)) == failure
    assert hash(score) == hash(pickle.loads(pickle.dumps(score)))
    with pytest.raises(AttributeError):
        score.mean = 10.0
    assert failure.stage is Stage.IMAGE
    assert isinstance(failure.error, nima_client.ImageRejectedError)


def all_errors() -> list[type[errors.NimaError]]:
    found, queue = [], [errors.NimaError]
    while queue:
        kind = queue.pop()
        found.append(kind)
        queue += [k for k in kind.__subclasses__() if k.__module__ == errors.__name__]
    return found


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_public_documented_and_survives_pickling(kind: Any) -> None:
    assert kind.__name__ in errors.__all__
    assert kind.__name__ in nima_client.__all__
    assert kind.__name__ in str(errors.__doc__)
    assert kind.__doc__
    error = kind("what happened")
    if isinstance(error, errors.RequestError):
        if kind is not errors.RequestError:
            assert isinstance(error.stage, Stage)
        error.request_id = "abc"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)


def test_the_public_names_exist() -> None:
    for name in nima_client.__all__:
        assert getattr(nima_client, name) is not None


# -- the fake ------------------------------------------------------------------------------------


def test_the_fake_answers_as_it_is_told(photo: Photo) -> None:
    best = [0.0] * 9 + [1.0]
    fake = FakeTransport(lambda request: reply(request, [best] * len(request.images)))
    with NimaClient(transport=fake) as client:
        score = client.score_one(photo(0))
    assert (score.mean, score.std, score.percentile) == (10.0, 0.0, 100.0)
    assert fake.closed
    assert fake.requests[0].images == (photo(0),)


def test_the_fake_refuses_and_overloads(photo: Photo) -> None:
    calls = []

    def handler(request: Any) -> Any:
        calls.append(len(request.images))
        if len(calls) == 1:
            raise status_error("UNAVAILABLE", "Exceeds maximum queue size", request.request_id)
        if len(request.images) == 3:
            raise rejected({1: RejectionCode.UNDECODABLE}, request.request_id)
        return reply(request)

    policy = RetryPolicy(initial_backoff_s=0.0)
    with NimaClient(transport=FakeTransport(handler), retry=policy, request_size=3) as client:
        results = client.score([photo(i) for i in range(3)], on_error="return")
    assert calls == [3, 3, 2]
    assert [isinstance(r, ImageFailure) for r in results] == [False, True, False]

    always = FakeTransport(lambda request: (_ for _ in ()).throw(QueueFull("full")))
    client = NimaClient(transport=always, retry=nima_client.NO_RETRIES)
    with client, pytest.raises(QueueFull):
        client.score_one(photo(0))


def test_the_fake_takes_coroutines_for_an_async_client(photo: Photo) -> None:
    import asyncio

    async def handler(request: Any) -> Any:
        await asyncio.sleep(0.01)
        return reply(request)

    async def main() -> float:
        async with AsyncNimaClient(transport=FakeTransport(handler)) as client:

            async def images() -> Any:
                for i in range(5):
                    await asyncio.sleep(0)
                    yield photo(i)

            scores = [score async for score in client.score_iter(images())]
            assert [score.index for score in scores] == list(range(5))
            return (await client.score_one(photo(0))).mean

    assert asyncio.run(main()) > 0
    client = NimaClient(transport=FakeTransport(handler))
    with client, pytest.raises(TypeError, match="coroutine"):
        client.score_one(photo(0))


@pytest.mark.parametrize(
    "options",
    [{"request_size": 0}, {"max_in_flight": 0}, {"max_side": 0}, {"url": "http://h:1"}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        NimaClient(**options)
    with pytest.raises(ValueError):
        AsyncNimaClient(**options)


def test_what_a_list_of_scores_looks_like(results: list[Any]) -> None:
    score = dataclasses.replace(results[0], source="beach.jpg", mean=5.25, std=1.5, percentile=71.4)
    assert repr(score) == (
        "ImageScore(index=0, mean=5.25, std=1.50, percentile=71, source='beach.jpg')"
    )
    assert "percentile=99.7," in repr(dataclasses.replace(score, percentile=99.7))
    assert "percentile" not in repr(dataclasses.replace(score, percentile=None))
    with NimaClient(transport=FakeTransport()) as client:
        assert len(repr(client.model_info())) < 400


def test_other_options_over_the_same_connection(photo: Photo) -> None:
    fake = FakeTransport()
    policy = RetryPolicy(attempts=2)
    with NimaClient(transport=fake, request_size=2, timeout=60.0, retry=policy) as client:
        one = client.with_options(request_size=1, max_side=100, timeout=None)
        assert type(one) is NimaClient
        one.score([photo(i, size=(200, 100)) for i in range(2)])
        client.score([photo(i, size=(200, 100)) for i in range(2)])
        assert [len(request.images) for request in fake.requests] == [1, 1, 2]
        assert inspect_header(fake.requests[0].images[0]).width == 100
        assert inspect_header(fake.requests[2].images[0]).width == 200
        assert [request.timeout_s for request in fake.requests[:2]] == [30.0, 30.0]
        with pytest.raises(ValueError, match="max_in_flight"):
            client.with_options(max_in_flight=0)
        with pytest.raises(TypeError):
            client.with_options(url="elsewhere:1")  # type: ignore[call-arg]
    assert fake.closed
    with pytest.raises(nima_client.RequestCancelled):
        one.score_one(photo(0))


def test_other_options_share_one_channel(server: Any, photo: Photo) -> None:
    import asyncio

    with NimaClient(server.url) as client:
        quick = client.with_options(timeout=5.0)
        assert quick.score_one(photo(0))
        assert client.score_one(photo(0))
    with pytest.raises(nima_client.RequestCancelled):
        quick.score_one(photo(0))

    async def main() -> None:
        async with AsyncNimaClient(server.url) as client:
            quick = client.with_options(timeout=5.0)
            assert await quick.score_one(photo(0))
            assert await client.score_one(photo(0))
        with pytest.raises(nima_client.RequestCancelled):
            await quick.score_one(photo(0))

    asyncio.run(main())


def test_other_options_know_the_server_already(
    server: Any, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_defaults, "RESTART_SECONDS", 60.0)
    with NimaClient(server.url) as client:
        for seconds in (5.0, 6.0):
            client.with_options(timeout=seconds).score_one(photo(0))
        client.score_one(photo(0))
    assert server.describes == 1


def test_both_clients_have_the_same_calls_with_the_same_arguments() -> None:
    import inspect

    names = {n for n in vars(NimaClient) if not n.startswith("_")}
    assert names == {n for n in vars(AsyncNimaClient) if not n.startswith("_")}
    assert inspect.signature(NimaClient) == inspect.signature(AsyncNimaClient)
    for name in names:
        one = inspect.signature(getattr(NimaClient, name)).parameters
        other = inspect.signature(getattr(AsyncNimaClient, name)).parameters
        assert list(one) == list(other)
        assert [p.default for p in one.values()] == [p.default for p in other.values()]


def test_the_one_line_score(photo: Photo, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMA_URL", server.url)
    assert len(nima_client.score([photo(0), photo(1)])) == 2
    results = nima_client.score([b""], url=server.url, on_error="return")
    assert isinstance(results[0], ImageFailure)


def test_a_failure_that_is_kept_does_not_keep_its_image(caller: Any, photo: Photo) -> None:
    def fails(number: int, images: list[bytes], context: Any) -> None:
        if b"odd" in images[0]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "odd")

    images = [photo(1) + b"odd", photo(2, refuse=True), b"no photo" + bytes(1000)]
    before = [sys.getrefcount(image) for image in images]
    with KServeServer(fails) as server:
        server.keep = False
        client = caller(server.url, request_size=1)
        failures = [r for _ in range(20) for r in client.score(images, on_error="return")]
        kept = [r for _ in range(20) for r in client.score_iter(iter(images), on_error="return")]
    assert {r.code for r in failures + kept} == {"MODEL", "UNDECODABLE", "UNSUPPORTED"}
    gc.collect()
    # A call that has ended may still be on its way out.
    now = [sys.getrefcount(image) for image in images]
    assert all(b <= a + 3 for a, b in zip(before, now, strict=True)), (before, now)
    with pytest.raises(NimaError) as caught:
        raise failures[0].error
    assert caught.value.__cause__ is not None


class ClosedMeanwhile(FakeTransport):
    """Closed by another thread just as a request has been taken note of."""

    def _record(self, request: Any) -> None:
        super()._record(request)
        self.close()


def test_a_fake_closed_in_the_middle_of_a_call_says_so(photo: Photo) -> None:
    client = NimaClient(transport=ClosedMeanwhile(), request_size=1)
    results = client.score([photo(0), photo(1)], on_error="return")
    assert [r.code for r in results] == ["CANCELLED"] * 2  # type: ignore[union-attr]


def test_a_refusal_that_a_handler_raises_survives_pickling() -> None:
    error = rejected({1: RejectionCode.EMPTY}, "abc")
    again = pickle.loads(pickle.dumps(error))
    assert again.rejections == error.rejections
    assert (str(again), again.request_id) == (str(error), "abc")
