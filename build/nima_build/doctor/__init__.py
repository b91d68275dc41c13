"""``nima doctor``: is this deployment sound, and what to do where it is not.

Every check looks at the running servers (or at the files it is given), says in one line what it
found, and, unless all is well, what to do about it. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import nima_client
from nima_build.doctor import _local, _model, _operations
from nima_build.doctor._finding import Finding, Target, one_line

__all__ = ["Finding", "Target", "examine"]


def examine(target: Target) -> Iterator[Finding]:
    """Run every check, in an order in which the first failure is the one to look at first.

    Where the address stands for several servers, each is examined by itself, and then whether they
    serve the same model. Checks that need a reachable server are left out when it is not.
    """
    yield _local.installation()
    if target.model_repository is not None:
        yield _local.artefacts(target.model_repository)
    try:
        servers = target.servers()
    except (OSError, ValueError) as error:
        yield Finding(
            "reachable", "failure", f"{target.url}: {one_line(error)}",
            "check the name and the port: gRPC is 8001 unless told otherwise",
        )  # fmt: skip
        return
    served: dict[str, nima_client.ModelInfo] = {}
    for server in servers:
        name = server.url if len(servers) > 1 else ""
        for finding in _examine_one(server, served):
            yield dataclasses.replace(finding, server=name)
    if len(servers) > 1:
        yield _model.same_everywhere(served, len(servers))


def _examine_one(target: Target, served: dict[str, nima_client.ModelInfo]) -> Iterator[Finding]:
    reachable = _operations.reachable(target)
    yield reachable
    if reachable.status == "failure":
        return
    with target.client() as client:
        try:
            info = client.model_info()
        except nima_client.NimaError as error:
            yield Finding("contract", "failure", one_line(error), _model.advice_for(error))
            return
        served[target.url] = info
        yield _model.contract(info)
        yield _model.versions(info)
        scoring = _model.scoring(client)
        yield scoring
        if target.model_repository is not None:
            yield _model.served_is_local(info, target.model_repository)
        # Without a score, these would wait and say the same again.
        if scoring.status == "ok":
            yield _model.golden(client, info)
            yield _model.latency(client)
            yield _operations.clock(target, client)
    yield _operations.closed_apis(target)
    if target.metrics_url is not None:
        yield from _operations.queue(target.metrics_url, target.timeout)
