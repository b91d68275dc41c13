"""The wire contract's own codecs."""

from __future__ import annotations

import dataclasses

import pytest

from nima_client import contract
from nima_client.contract import (
    ContractError,
    Rejection,
    RejectionCode,
    ServedModel,
    format_rejections,
    parse_rejections,
    percentile_of,
)


def test_rejections_survive_tritons_prefix_and_suffix():
    sent = [
        Rejection(3, RejectionCode.TOO_LARGE, 'quotes " and , commas'),
        Rejection(1, RejectionCode.EMPTY, "no bytes"),
    ]
    text = f"[request id: 7] in ensemble 'nima', {format_rejections(sent)} (trailing words)"
    assert parse_rejections(text) == (sent[1], sent[0])


def test_a_full_batch_of_rejections_fits_a_grpc_header():
    rows = [Rejection(i, RejectionCode.UNDECODABLE, "x" * 1000) for i in range(32)]
    text = format_rejections(rows)
    assert len(text.encode()) < 7000
    assert len(parse_rejections(text)) == contract.MAX_BATCH_SIZE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "queue is full",
        "NIMA_REJECTED ",
        "NIMA_REJECTED {}",
        'NIMA_REJECTED [{"index":1}]',
        'NIMA_REJECTED [{"index":Infinity,"code":"EMPTY","detail":""}]',
        "NIMA_REJECTED " + "[" * 200_000,
    ],
    ids=lambda text: text[:40],
)
def test_other_texts_carry_no_rejections(text):
    assert parse_rejections(text) == ()


def test_served_model_round_trip():
    model = ServedModel(1, "a name", "ab" * 32, "id", "set", tuple(i / 10 for i in range(101)))
    assert ServedModel.from_parameters(model.to_parameters()) == model
    assert "request_size" not in model.to_parameters()
    larger = dataclasses.replace(model, request_size=32, instances=2, precision="int8")
    assert ServedModel.from_parameters(larger.to_parameters()) == larger


@pytest.mark.parametrize("name", ["request_size", "instances"])
@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_count_that_is_none_is_refused(name, count):
    parameters = ServedModel(1, "a", "b", "c").to_parameters()
    with pytest.raises(ContractError, match="unreadable"):
        ServedModel.from_parameters({**parameters, name: count})


def test_a_server_without_the_facts_is_told_apart():
    with pytest.raises(ContractError, match="contract_version"):
        ServedModel.from_parameters({})
    with pytest.raises(ContractError, match="unreadable"):
        ServedModel.from_parameters(
            {
                "contract_version": "one",
                "checkpoint_name": "",
                "checkpoint_sha256": "",
                "preprocessing_id": "",
            }
        )


def test_percentiles_interpolate_and_clamp():
    quantiles = [float(q) for q in range(101)]
    assert percentile_of(-1, quantiles) == 0
    assert percentile_of(1000, quantiles) == 100
    assert percentile_of(42.25, quantiles) == pytest.approx(42.25)
    assert percentile_of(5, [5.0] * 101) == 0
    assert percentile_of(5, []) is None
