"""A handler for the fake that refuses what the in-process server refuses."""

from __future__ import annotations

from kserve_server import REFUSE

from nima_client.contract import RejectionCode
from nima_client.testing import InferReply, InferRequest, answer, rejected


def refusing_answer(request: InferRequest) -> InferReply:
    bad = {i: RejectionCode.UNDECODABLE for i, im in enumerate(request.images) if REFUSE in im}
    if bad:
        raise rejected(bad, request.request_id)
    return answer(request)
