"""The contract check at connect, and what happens when the model behind an address changes."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kserve_server import KServeServer

from nima_client import (
    AsyncNimaClient,
    ConnectError,
    ContractError,
    DeadlineExceeded,
    ImageScore,
    NimaClient,
    RequestCancelled,
    _defaults,
)
from nima_client._contract_check import check_contract
from nima_client._transport import TensorInfo
from nima_client.testing import FAKE_MODEL, FakeTransport, describe_model, reply

Make = Callable[..., Any]
GOOD = describe_model()


def with_parameters(**changed: str | None) -> dict[str, str]:
    parameters = {**GOOD.parameters, **changed}
    return {key: value for key, value in parameters.items() if value is not None}


def with_outputs(*outputs: TensorInfo) -> Any:
    return dataclasses.replace(GOOD, outputs=outputs)


STRANGERS = [
    (dataclasses.replace(GOOD, inputs=()), "not one IMAGE"),
    (
        dataclasses.replace(GOOD, inputs=(TensorInfo("INPUT__0", "FP32", (-1, 3, 224, 224)),)),
        "INPUT__0",
    ),
    (dataclasses.replace(GOOD, inputs=(*GOOD.inputs, TensorInfo("X", "FP32", (1,)))), "X"),
    (dataclasses.replace(GOOD, inputs=(TensorInfo("IMAGE", "FP32", (-1, 3)),)), "FP32"),
    (with_outputs(*GOOD.outputs[1:]), "no output DISTRIBUTION"),
    (with_outputs(TensorInfo("DISTRIBUTION", "FP32", (-1, 5)), *GOOD.outputs[1:]), r"\[-1, 5\]"),
    (with_outputs(TensorInfo("DISTRIBUTION", "FP16", (-1, 10)), *GOOD.outputs[1:]), "FP16"),
    (dataclasses.replace(GOOD, parameters={}), "contract_version"),
    (dataclasses.replace(GOOD, parameters=with_parameters(checkpoint_sha256=None)), "sha256"),
    (dataclasses.replace(GOOD, parameters=with_parameters(contract_version="x")), "unreadable"),
    (
        dataclasses.replace(
            GOOD, parameters=with_parameters(reference_quantiles="[" + "9" * 400 + "]")
        ),
        "too large",
    ),
    (
        dataclasses.replace(GOOD, parameters=with_parameters(reference_quantiles="[" * 200_000)),
        "recursion",
    ),
    *(
        (dataclasses.replace(GOOD, parameters=with_parameters(reference_quantiles=q)), "ascend")
        for q in ("[2, 1]", "[1, NaN, 3]")
    ),
    (
        dataclasses.replace(GOOD, parameters=with_parameters(contract_version="0")),
        "upgrade the server",
    ),
    (
        dataclasses.replace(GOOD, parameters=with_parameters(contract_version="99")),
        "upgrade the client",
    ),
]


@pytest.mark.parametrize(("description", "why"), STRANGERS, ids=[why for _, why in STRANGERS])
def test_what_is_not_nima_is_recognised(
    caller: Make, server: KServeServer, photo: Make, description: Any, why: str
) -> None:
    server.description = description
    with pytest.raises(ContractError, match=why):
        caller(server.url).score([photo(0)])
    assert server.batches == []


def test_another_model_name(caller: Make, server: KServeServer, photo: Make) -> None:
    with pytest.raises(ContractError, match="no such model"):
        caller(server.url, model_name="resnet50").score_one(photo(0))


def test_a_uint8_server_gets_one_image_a_request(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    server.description = describe_model(input_type="UINT8")
    images = [photo(i) for i in range(6)]
    client = caller(server.url, request_size=4)
    assert client.model_info().input_type == "UINT8"
    scores = client.score(images)
    assert sorted(len(batch) for batch in server.batches) == [1] * 6
    assert sorted(batch[0] for batch in server.batches) == sorted(images)
    assert len(scores) == 6


def test_a_small_server_gets_small_requests(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    server.description = dataclasses.replace(GOOD, max_batch_size=2)
    caller(server.url, request_size=32).score([photo(i) for i in range(6)])
    assert [len(batch) for batch in server.batches] == [2, 2, 2]


def test_requests_are_as_large_as_the_server_advises(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    """Unless the caller says otherwise; photos that are large already share fewer requests."""
    server.description = describe_model(dataclasses.replace(FAKE_MODEL, request_size=4))
    images = [photo(i) for i in range(10)]
    client = caller(server.url)
    assert [score.index for score in client.score(images)] == list(range(10))
    assert sorted(len(batch) for batch in server.batches) == [2, 4, 4]
    server.batches.clear()
    wide = dataclasses.replace(FAKE_MODEL, request_size=4, instances=3)
    other = caller(server.url)
    server.description = describe_model(wide)
    # Smaller ones keep all three instances busy.
    for count, sizes in ((2, [1, 1]), (7, [1, 2, 2, 2]), (13, [1, 4, 4, 4])):
        server.batches.clear()
        other.score([photo(i) for i in range(count)])
        assert sorted(len(batch) for batch in server.batches) == sizes
    server.description = describe_model(dataclasses.replace(FAKE_MODEL, request_size=4))
    server.batches.clear()
    caller(server.url, request_size=1).score(images[:3])
    assert [len(batch) for batch in server.batches] == [1, 1, 1]
    server.batches.clear()
    client.score([image + bytes(3 << 19) for image in images[:5]])
    assert sorted(len(batch) for batch in server.batches) == [1, 2, 2]
    server.batches.clear()
    list(client.score_iter(iter(images[:6])))
    assert sum(len(batch) for batch in server.batches) == 6
    # Of a stream nobody knows when the next one comes: the first does not wait.
    assert [images[0]] in [list(batch) for batch in server.batches]


def test_scores_name_the_weights_that_made_them(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    client = caller(server.url)
    assert client.score_one(photo(0)).checkpoint_name == "fake"
    newer = dataclasses.replace(FAKE_MODEL, checkpoint_name="newer", checkpoint_sha256="1" * 64)
    server.description = describe_model(newer, versions=("2",))
    server.model_version = "2"
    score = client.score_one(photo(0))
    assert (score.model_version, score.checkpoint_name) == ("2", "newer")
    assert client.score_one(photo(1)).checkpoint_name == "newer"
    assert server.describes == 2


def test_a_server_that_stops_being_nima_is_noticed(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    client = caller(server.url)
    client.score_one(photo(0))
    server.description = dataclasses.replace(GOOD, versions=("2",), parameters={})
    server.model_version = "2"
    with pytest.raises(ContractError):
        client.score_one(photo(0))


def test_weights_behind_a_restarted_server_are_read_again(caller: Make, photo: Make) -> None:
    first, others = KServeServer(), []
    described = threading.Event()

    def restart() -> None:
        first.stop()
        others.append(KServeServer(lambda *_: described.wait(30), port=first.port))
        newer = dataclasses.replace(FAKE_MODEL, checkpoint_name="newer")
        others[0].description = describe_model(newer)
        described.set()

    thread = threading.Thread(target=restart)

    def ends(number: int, images: list[bytes], context: Any) -> None:
        if number == 2:
            thread.start()
            first._sleep(60.0, context)  # until it is cancelled

    first.behaviour = ends
    try:
        client = caller(first.url)
        assert client.score_one(photo(0)).checkpoint_name == "fake"
        # The same version number as before: only the broken request tells.
        assert client.score([photo(0)])[0].checkpoint_name == "newer"
    finally:
        thread.join(30)
        for server in (first, *others):
            server.stop()


def test_weights_that_changed_while_nothing_was_asked_are_read_again(
    caller: Make, photo: Make, server: KServeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_defaults, "RESTART_SECONDS", 60.0)
    client = caller(server.url)
    assert client.score_one(photo(0)).checkpoint_name == "fake"
    newer = dataclasses.replace(FAKE_MODEL, checkpoint_name="newer")
    server.description = describe_model(newer)
    # One that has not been silent was not restarted: not asked with every photo.
    assert client.score_one(photo(0)).checkpoint_name == "fake"
    monkeypatch.setattr(_defaults, "RESTART_SECONDS", 0.2)
    time.sleep(0.3)
    assert client.score_one(photo(0)).checkpoint_name == "newer"


def test_weights_that_changed_without_any_pause_are_read_again_in_time(
    caller: Make, photo: Make, server: KServeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_defaults, "RESTART_SECONDS", 60.0)
    client = caller(server.url)
    assert client.score_one(photo(0)).checkpoint_name == "fake"
    # As by a rolling update: another of several servers has answered all the time.
    newer = dataclasses.replace(FAKE_MODEL, checkpoint_name="newer")
    server.description = describe_model(newer)
    monkeypatch.setattr(_defaults, "FACTS_SECONDS", 0.0)
    assert client.score_one(photo(0)).checkpoint_name == "newer"
    monkeypatch.setattr(_defaults, "FACTS_SECONDS", 60.0)
    assert client.score_one(photo(0)).checkpoint_name == "newer"
    assert server.describes == 2


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_no_call_of_a_burst_goes_by_the_weights_of_before(
    server: KServeServer, photo: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(_defaults, "RESTART_SECONDS", 0.2)

    def swap() -> None:
        newer = dataclasses.replace(FAKE_MODEL, checkpoint_name="newer")
        server.description, server.describe_delay = describe_model(newer), 0.2

    def by_threads() -> list[ImageScore]:
        with NimaClient(server.url) as client, ThreadPoolExecutor(4) as pool:
            client.score_one(photo(0))
            swap()
            time.sleep(0.3)
            return list(pool.map(client.score_one, map(photo, range(4))))

    async def by_tasks() -> list[ImageScore]:
        async with AsyncNimaClient(server.url) as client:
            await client.score_one(photo(0))
            swap()
            await asyncio.sleep(0.3)
            return await asyncio.gather(*map(client.score_one, map(photo, range(4))))

    scores = by_threads() if kind == "threads" else asyncio.run(by_tasks())
    assert [score.checkpoint_name for score in scores] == ["newer"] * 4


def test_reading_the_facts_again_ends_with_the_call(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    client = caller(server.url, max_in_flight=4)
    client.model_info()
    server.description = describe_model(versions=("2",))
    server.model_version = "2"
    server.describe_delay = 60.0
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.score_one(photo(0), timeout=0.5)
    results = client.score([photo(i) for i in range(9)], timeout=0.5, on_error="return")
    assert {result.code for result in results} == {"DEADLINE"}
    assert time.monotonic() - start < 15.0
    server.describe_delay = 0.0
    assert client.score_one(photo(0)).model_version == "2"


def test_both_questions_of_a_contact_share_its_time(caller: Make, server: KServeServer) -> None:
    server.describe_delay = 1.0
    with pytest.raises(DeadlineExceeded):
        caller(server.url, connect_timeout=1.6).model_info()


@pytest.mark.parametrize("kind", [DeadlineExceeded, RequestCancelled])
def test_what_ends_here_says_nothing_of_the_weights(caller: Make, photo: Make, kind: Any) -> None:
    errors = [kind("over")]

    def handler(request: Any) -> Any:
        if errors:
            raise errors.pop()
        return reply(request)

    fake = FakeTransport(handler)
    asked: list[str] = []
    describe = fake.describe
    fake.describe = lambda *args: (asked.append(args[1]), describe(*args))[1]  # type: ignore[method-assign]
    client = caller(transport=fake)
    with pytest.raises(kind):
        client.score_one(photo(0))
    client.score_one(photo(0))
    assert asked == [""]
    errors.append(ConnectError("reset"))
    client.score_one(photo(0))
    assert len(asked) == 2


def test_facts_of_the_model() -> None:
    info = check_contract(GOOD)
    assert info.served == FAKE_MODEL
    assert info.to_dict()["served"]["checkpoint_name"] == "fake"
