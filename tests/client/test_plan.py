"""The logic of a call without input or output, driven through any order of events."""

from __future__ import annotations

import random
from collections.abc import Callable, Container

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima_client import _defaults, errors
from nima_client._attempt import Attempt
from nima_client._images import Prepared
from nima_client._plan import Plan
from nima_client._retry import NO_RETRIES, RetryPolicy
from nima_client._transport import RejectedImages
from nima_client.contract import Rejection, RejectionCode
from nima_client.results import ImageFailure, ImageScore

UNREADABLE = errors.ImageRejectedError("no such file", code="UNREADABLE")
QUICK = RetryPolicy(attempts=4, budget_s=1e9, initial_backoff_s=0.0, max_backoff_s=0.0)


def make_plan(
    size: int = 1, window: int = 4, retry: RetryPolicy = QUICK, **options: object
) -> Plan:
    return Plan(request_size=size, max_in_flight=window, retry=retry, **options)  # type: ignore[arg-type]


def image(index: int) -> Prepared:
    return Prepared(str(index).encode(), source=f"{index}.jpg")


def scores(attempt: Attempt) -> list[ImageScore]:
    return [ImageScore(item.index, 5.0, 1.0, (0.1,) * 10) for item in attempt.items]


def refusal(*rows: int) -> RejectedImages:
    return RejectedImages(tuple(Rejection(r, RejectionCode.UNDECODABLE, "bad") for r in rows))


Outcome = Callable[[Attempt], "errors.RequestError | None"]


def run(
    plan: Plan,
    count: int,
    outcome: Outcome,
    rng: random.Random,
    step: float = 0.0,
    unreadable: Container[int] = (),
) -> tuple[list[ImageScore | ImageFailure], list[Attempt], int]:
    """Drive a plan to its end, answering requests under way in a random order.

    Images in ``unreadable`` fail before they are sent. There must always be something to do.
    """
    now, fed, peak, results = 0.0, 0, 0, []
    sent: list[Attempt] = []
    open_requests: list[Attempt] = []
    for _ in range(100_000):
        results += plan.take()
        if plan.finished:
            return results, sent, peak
        now += step
        if plan.expire(now):
            continue
        choices = []
        attempt = plan.next_request(now)
        if attempt is not None:
            sent.append(attempt)
            open_requests.append(attempt)
            peak = max(peak, len(open_requests))
        if plan.wants_input:
            choices.append("feed")
        if open_requests:
            choices.append("answer")
        if not choices:
            wake = plan.wake_at()
            assert wake is not None, "the plan waits for nothing"
            now = max(now, wake)
            continue
        if rng.choice(choices) == "feed":
            if fed == count:
                plan.end_of_input()
                continue
            if fed in unreadable:
                plan.add_failure(fed, UNREADABLE)
            else:
                plan.add(fed, image(fed))
            fed += 1
        else:
            answered = open_requests.pop(rng.randrange(len(open_requests)))
            error = outcome(answered)
            if error is None:
                plan.succeeded(answered, scores(answered), now)
            else:
                plan.failed(answered, error, now)
    raise AssertionError("the plan does not end")


@given(
    count=st.integers(0, 60),
    size=st.integers(1, 7),
    window=st.integers(1, 9),
    ordered=st.booleans(),
    bad=st.sets(st.integers(0, 59)),
    unreadable=st.sets(st.integers(0, 59))
    | st.builds(range, st.integers(0, 9), st.integers(0, 60)),
    reorder_window=st.integers(1, 20),
    eager=st.integers(0, 2),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_every_image_has_one_result_whatever_the_order_of_events(
    count: int, size: int, window: int, ordered: bool, bad: set[int], unreadable: set[int] | range,
    reorder_window: int, eager: int, seed: int,
) -> None:  # fmt: skip
    rng = random.Random(seed)

    def outcome(attempt: Attempt) -> errors.RequestError | None:
        named = [row for row, item in enumerate(attempt.items) if item.index in bad]
        if named:
            return refusal(*named)
        fails_once = attempt.number == 1 and rng.random() < 0.2
        return errors.QueueFull("full") if fails_once else None

    plan = make_plan(
        size, window, ordered=ordered, rng=rng, reorder_window=reorder_window, eager=eager
    )
    results, sent, peak = run(plan, count, outcome, rng, unreadable=unreadable)

    indices = [result.index for result in results]
    assert sorted(indices) == list(range(count))
    if ordered:
        assert indices == list(range(count))
    failed = {result.index for result in results if isinstance(result, ImageFailure)}
    assert failed == (bad | set(unreadable)) & set(range(count))
    assert peak <= window
    assert all(1 <= len(attempt.items) <= size for attempt in sent)
    # A good image travels with bad ones at most once, and its request is sent again at most once.
    ids = {id(attempt) for attempt in sent}
    for index in set(range(count)) - bad - set(unreadable):
        requests = {id(a) for a in sent if any(item.index == index for item in a.items)}
        assert len(requests & ids) <= 2


@given(size=st.integers(1, 5), window=st.integers(1, 6), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_memory_is_bounded_by_the_window(size: int, window: int, seed: int) -> None:
    rng = random.Random(seed)
    plan = make_plan(size, window, rng=rng, reorder_window=20)
    fed, taken, stuck = 0, 0, None
    for _ in range(2000):
        attempt = plan.next_request(0.0)
        if attempt is not None:
            if stuck is None:
                stuck = attempt  # the very first request is never answered: all others wait behind
            else:
                plan.succeeded(attempt, scores(attempt), 0.0)
        elif plan.wants_input:
            plan.add(fed, image(fed))
            fed += 1
        taken += len(plan.take())
    assert taken == 0
    assert fed <= max(20, size) + (window + 2) * size


@given(seed=st.integers(0, 2**32), deadline=st.floats(0.5, 30))
@settings(max_examples=50, deadline=None)
def test_a_deadline_answers_for_everything_that_was_accepted(seed: int, deadline: float) -> None:
    rng = random.Random(seed)
    plan = make_plan(2, 3, deadline=deadline, rng=rng)
    results, _, _ = run(plan, 40, lambda _: None, rng, step=1.0)
    assert [r.index for r in results] == list(range(len(results)))
    late = [r for r in results if isinstance(r, ImageFailure)]
    assert all(r.code == "DEADLINE" for r in late)
    if len(results) < 40:
        assert isinstance(plan.broken, errors.DeadlineExceeded)


def drive(plan: Plan, count: int, outcome: Outcome) -> list[ImageScore | ImageFailure]:
    return run(plan, count, outcome, random.Random(0))[0]


def failing(times: int, error: errors.RequestError) -> tuple[Outcome, list[int]]:
    """An outcome that fails so many times for each image, and the attempts that it saw."""
    tried: list[int] = []

    def outcome(attempt: Attempt) -> errors.RequestError | None:
        tried.append(attempt.number)
        return error if attempt.number <= times else None

    return outcome, tried


def test_a_failing_request_is_sent_again_until_the_attempts_end() -> None:
    crash = errors.ModelError("crashed")
    outcome, tried = failing(3, crash)
    assert not any(isinstance(r, ImageFailure) for r in drive(make_plan(), 1, outcome))
    assert tried == [1, 2, 3, 4]
    outcome, tried = failing(4, crash)
    (result,) = drive(make_plan(), 1, outcome)
    assert isinstance(result, ImageFailure)
    assert tried == [1, 2, 3, 4]


@pytest.mark.parametrize("refusal", [errors.QueueFull("full"), errors.QueueTimeout("late")])
def test_overload_costs_the_budget_and_no_attempts(refusal: errors.RequestError) -> None:
    outcome, tried = failing(50, refusal)
    assert not any(isinstance(r, ImageFailure) for r in drive(make_plan(), 1, outcome))
    assert len(tried) == 51

    policy = RetryPolicy(attempts=4, budget_s=20.0, initial_backoff_s=1.0, max_backoff_s=1.0)
    plan = make_plan(retry=policy)
    results, sent, _ = run(plan, 3, lambda _: refusal, random.Random(0), step=0.01)
    assert {r.code for r in results if isinstance(r, ImageFailure)} == {refusal.code}
    assert len(sent) > 3 * 15

    outcome, tried = failing(1, refusal)
    (result,) = drive(make_plan(retry=NO_RETRIES), 1, outcome)
    assert isinstance(result, ImageFailure)
    assert tried == [1]


def test_refusals_between_crashes_do_not_save_a_request_that_crashes_its_server() -> None:
    sent: list[int] = []

    def outcome(attempt: Attempt) -> errors.RequestError | None:
        sent.append(attempt.number)
        return errors.QueueFull("full") if attempt.number % 2 else errors.ModelError("crashed")

    (result,) = drive(make_plan(), 1, outcome)
    assert isinstance(result, ImageFailure)
    assert result.code == "MODEL"
    assert len(sent) == 2 * QUICK.attempts


def test_a_retry_after_the_deadline_is_not_waited_for() -> None:
    policy = RetryPolicy(initial_backoff_s=10.0, max_backoff_s=10.0, jitter=0.0)
    full = errors.QueueFull("full")
    plan = make_plan(retry=policy, deadline=5.0)
    results, sent, _ = run(plan, 1, lambda _: full, random.Random(0), step=0.01)
    assert [r.code for r in results if isinstance(r, ImageFailure)] == ["QUEUE_FULL"]
    assert len(sent) == 1


def test_what_went_wrong_before_the_deadline_is_told() -> None:
    plan = make_plan(retry=RetryPolicy(initial_backoff_s=0.1, jitter=0.0), deadline=5.0)
    plan.add(0, image(0))
    plan.end_of_input()
    first = plan.next_request(0.0)
    assert first is not None
    plan.failed(first, errors.QueueFull("the queue is full"), 0.1)
    second = plan.next_request(0.3)
    assert second is first
    assert plan.expire(6.0)
    (result,) = plan.take()
    assert isinstance(result, ImageFailure)
    assert result.code == "DEADLINE"
    assert "the queue is full" in result.message
    assert result.request_id.endswith(".2")


def test_a_refused_image_is_never_sent_again() -> None:
    sent: list[tuple[int, ...]] = []

    def outcome(attempt: Attempt) -> errors.RequestError | None:
        sent.append(tuple(item.index for item in attempt.items))
        bad = [row for row, item in enumerate(attempt.items) if item.index == 1]
        return refusal(*bad) if bad else None

    results = drive(make_plan(4), 4, outcome)
    assert sent == [(0, 1, 2, 3), (0, 2, 3)]
    assert [isinstance(r, ImageFailure) for r in results] == [False, True, False, False]
    assert results[1].source == "1.jpg"


def test_a_server_that_refuses_other_images_the_second_time_is_not_asked_a_third() -> None:
    sent = []

    def outcome(attempt: Attempt) -> errors.RequestError | None:
        sent.append(len(attempt.items))
        return refusal(0)

    results = drive(make_plan(3), 3, outcome)
    assert sent == [3, 2]
    assert [r.code for r in results if isinstance(r, ImageFailure)] == [
        "UNDECODABLE", "UNDECODABLE", "MODEL",
    ]  # fmt: skip


def test_a_refusal_without_names_sends_each_image_alone() -> None:
    sent = []

    def outcome(attempt: Attempt) -> errors.RequestError | None:
        indices = tuple(item.index for item in attempt.items)
        sent.append(indices)
        return errors.ModelError("bad request", retryable=False) if 2 in indices else None

    results = drive(make_plan(3, window=1), 3, outcome)
    assert sent == [(0, 1, 2), (0,), (1,), (2,)]
    assert [isinstance(r, ImageFailure) for r in results] == [False, False, True]


@pytest.mark.parametrize(
    "error", [errors.TLSError("x"), errors.AuthenticationError("x"), errors.ContractError("x")]
)
def test_what_no_retry_can_mend_ends_the_call(error: errors.RequestError) -> None:
    plan = make_plan()
    results, sent, _ = run(plan, 50, lambda _: error, random.Random(0))
    assert plan.broken is error
    assert len(sent) <= 5
    assert all(isinstance(r, ImageFailure) for r in results)


def test_a_budget_without_any_success_ends_the_call() -> None:
    policy = RetryPolicy(attempts=10**6, budget_s=10.0, initial_backoff_s=1.0, max_backoff_s=1.0)
    plan = make_plan(retry=policy)
    gone = errors.ConnectError("gone")
    _, sent, _ = run(plan, 100, lambda _: gone, random.Random(0), step=0.01)
    assert plan.broken is gone
    assert len(sent) < 4 * 25


def test_a_success_sets_the_budget_back() -> None:
    policy = RetryPolicy(attempts=10**6, budget_s=3.0, initial_backoff_s=0.1, max_backoff_s=0.1)
    plan = make_plan(window=1, retry=policy)

    def outcome(attempt: Attempt) -> errors.RequestError | None:
        # Each image fails for less than the budget; all of them together for far more.
        return None if attempt.number > 10 else errors.QueueFull("full")

    results, _, _ = run(plan, 30, outcome, random.Random(0), step=0.01)
    assert not any(isinstance(r, ImageFailure) for r in results)


def test_without_retries_one_lost_connection_does_not_end_a_call_that_goes_on() -> None:
    def outcome(attempt: Attempt) -> errors.RequestError | None:
        return errors.ConnectError("reset") if attempt.items[0].index == 5 else None

    plan = make_plan(window=4, retry=NO_RETRIES)
    results, _, _ = run(plan, 20, outcome, random.Random(1), step=0.01)
    failed = [r.index for r in results if isinstance(r, ImageFailure)]
    assert 5 in failed


def test_images_that_failed_here_do_not_fill_the_window_for_ever() -> None:
    plan = make_plan(size=4, reorder_window=10)
    plan.add(0, image(0))
    for index in range(1, 11):
        assert plan.wants_input
        assert plan.next_request(0.0) is None
        plan.add_failure(index, UNREADABLE)
    assert not plan.wants_input
    # Nothing else can happen: the photo goes without company.
    attempt = plan.next_request(0.0)
    assert attempt is not None
    plan.succeeded(attempt, scores(attempt), 0.0)
    assert [r.index for r in plan.take()] == list(range(11))
    assert plan.wants_input


def test_late_answers_are_dropped() -> None:
    plan = make_plan(deadline=1.0)
    plan.add(0, image(0))
    plan.end_of_input()
    attempt = plan.next_request(0.0)
    assert attempt is not None
    assert plan.expire(2.0)
    plan.succeeded(attempt, scores(attempt), 2.0)
    assert [r.code for r in plan.take() if isinstance(r, ImageFailure)] == ["DEADLINE"]
    assert plan.finished


def test_backoff_grows_within_its_limit_and_jitter() -> None:
    policy = RetryPolicy(initial_backoff_s=0.1, max_backoff_s=1.0, multiplier=2.0, jitter=0.5)
    rng = random.Random(0)
    for failures, full in [(1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (500, 1.0)]:
        waits = [policy.backoff(failures, rng) for _ in range(200)]
        assert full / 2 <= min(waits) <= max(waits) <= full
        assert len(set(waits)) > 100


@pytest.mark.parametrize(
    "options",
    [{"attempts": 0}, {"jitter": 2}, {"multiplier": 0.5}, {"budget_s": -1}, {"max_backoff_s": -1}],
)
def test_a_policy_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**options)  # type: ignore[arg-type]


def test_an_eager_plan_waits_only_while_something_is_under_way() -> None:
    plan = make_plan(size=3, eager=1)
    plan.add(0, image(0))
    first = plan.next_request(0.0)
    assert first is not None
    assert len(first.items) == 1
    plan.add(1, image(1))
    assert plan.next_request(0.0) is None
    plan.add(2, image(2))
    plan.add(3, image(3))
    full = plan.next_request(0.0)
    assert full is not None
    assert [item.index for item in full.items] == [1, 2, 3]
    plan.add(4, image(4))
    for attempt in (first, full):
        assert plan.next_request(0.0) is None
        plan.succeeded(attempt, scores(attempt), 0.0)
    last = plan.next_request(0.0)
    assert last is not None
    assert [item.index for item in last.items] == [4]
    patient = make_plan(size=3)
    patient.add(0, image(0))
    assert patient.next_request(0.0) is None


def test_large_photos_fill_the_window_too() -> None:
    plan = make_plan(size=4, window=5, request_bytes=10)
    sent = 0
    for index in range(100):
        if not plan.wants_input:
            break
        plan.add(index, Prepared(bytes(25)))
        sent += plan.next_request(0.0) is not None
    assert (sent, index) == (5, 6)


def test_what_is_under_way_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_defaults, "MAX_BYTES", 10)
    plan = make_plan(size=32, window=2, request_bytes=10)
    sent = []
    for index in range(100):
        if not plan.wants_input:
            break
        plan.add(index, Prepared(b"123456"))
        while (attempt := plan.next_request(0.0)) is not None:
            sent.append(attempt)
    # Two requests under way, of two photos each, and one photo: 30 bytes, at a limit of 30.
    assert [len(attempt.items) for attempt in sent] == [2, 2]
    assert index == 5
    plan.succeeded(sent[0], scores(sent[0]), 0.0)
    assert plan.wants_input
    plan.add(5, Prepared(b"123456"))
    bad = plan.next_request(0.0)
    assert bad is not None
    plan.failed(bad, refusal(0, 1), 0.0)
    plan.succeeded(sent[1], scores(sent[1]), 0.0)
    plan.end_of_input()
    while (attempt := plan.next_request(0.0)) is not None:
        plan.succeeded(attempt, scores(attempt), 0.0)
    assert len(plan.take()) == 6
    assert plan.finished
