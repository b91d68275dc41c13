"""``nima doctor``: is this deployment sound, and what to do where it is not.

Every check looks at the running system (or at the files it is given), says in one line what it
found, and, unless all is well, what to do about it. Nothing is changed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import nima_client
from nima_build.checksums import check_checksums
from nima_build.doctor_finding import Finding, Target, one_line
from nima_build.doctor_operations import clock, closed_apis, queue
from nima_build.golden import golden_photos, load_golden, unchanged
from nima_build.metadata import ArtefactError
from nima_build.repository import load_metadata
from nima_client.contract import CONTRACT_VERSION

GOLDEN_TOLERANCE = 0.05
"""Largest difference of a golden mean: FP16 and int8 engines stay within it (docs/build.md)."""
_LATENCY_REQUESTS = 25
_SLOW_MS = 1000.0


def examine(target: Target) -> Iterator[Finding]:
    """Run every check, in an order in which the first failure is the one to look at first.

    Checks that need a reachable server are left out when it is not.
    """
    if target.model_repository is not None:
        yield _artefacts(target.model_repository)
    reachable = _reachable(target)
    yield reachable
    if reachable.status == "failure":
        return
    with target.client() as client:
        try:
            info = client.model_info()
        except nima_client.NimaError as error:
            yield Finding("contract", "failure", one_line(error), _advice_for(error))
            return
        yield _contract(info)
        yield _scoring(client)
        if target.model_repository is not None:
            yield _served_is_local(info, target.model_repository)
        yield _golden(client, info)
        yield _latency(client)
    yield closed_apis(target)
    if target.http_url is not None:
        yield clock(target.http_url, target.timeout)
    if target.metrics_url is not None:
        yield from queue(target.metrics_url, target.timeout)


def _advice_for(error: nima_client.NimaError) -> str:
    if isinstance(error, nima_client.TLSError):
        return "give the authority of the server's certificate (--tls-ca), or check its names"
    if isinstance(error, nima_client.AuthenticationError):
        return "give the header the server expects (--header name=value)"
    if isinstance(error, nima_client.ContractError):
        return "check that this is a NIMA server, and update the older of client and server"
    return "look at the server's log; `nima serve` restarts what died"


def _artefacts(repository: Path) -> Finding:
    try:
        count = check_checksums(repository)
        metadata = load_metadata(repository)
    except ArtefactError as error:
        return Finding(
            "artefacts", "failure", one_line(error), "run `nima export` (or `nima build`)"
        )
    digest = metadata.checkpoint_sha256[:12]
    return Finding(
        "artefacts", "ok", f"{count} files match SHA256SUMS; {metadata.name}, checkpoint {digest}"
    )


def _reachable(target: Target) -> Finding:
    address = target.url.rpartition("/")[2]
    host, _, port = address.rpartition(":")
    begin = time.monotonic()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=target.timeout):
            pass
    except (OSError, ValueError) as error:
        return Finding(
            "reachable", "failure", f"{target.url}: {one_line(error)}",
            "start the server (`nima serve`), or check the address, the firewall and the port: "
            "gRPC is 8001 unless told otherwise",
        )  # fmt: skip
    return Finding("reachable", "ok", f"{target.url} in {1e3 * (time.monotonic() - begin):.1f} ms")


def _contract(info: nima_client.ModelInfo) -> Finding:
    served = info.served
    detail = (
        f"contract {served.contract_version}, {info.name} version {','.join(info.versions)}, "
        f"{served.checkpoint_name} checkpoint {served.checkpoint_sha256[:12]}"
    )
    if served.contract_version != CONTRACT_VERSION:
        return Finding(
            "contract", "warning", detail,
            f"this installation speaks contract {CONTRACT_VERSION}: update the older of the two",
        )  # fmt: skip
    if not served.reference_quantiles:
        return Finding(
            "contract", "warning", f"{detail}; no reference set",
            "results carry no percentile: export a checkpoint with reference quantiles",
        )  # fmt: skip
    return Finding("contract", "ok", detail)


def _scoring(client: nima_client.NimaClient) -> Finding:
    """Health endpoints stay green with a dead Python model; only a score shows that it works."""
    try:
        score = client.score_one(_small_photo())
    except nima_client.NimaError as error:
        return Finding("scoring", "failure", one_line(error), _advice_for(error))
    total = sum(score.distribution)
    if not (abs(total - 1) < 1e-3 and 1 <= score.mean <= 10):
        return Finding(
            "scoring", "failure", f"mean {score.mean:.3f}, probabilities sum to {total:.4f}",
            "the engine is broken: build it again and run `nima verify`",
        )  # fmt: skip
    return Finding("scoring", "ok", f"a photo was scored by version {score.model_version}")


def _small_photo() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def _served_is_local(info: nima_client.ModelInfo, repository: Path) -> Finding:
    try:
        local = load_metadata(repository)
    except ArtefactError as error:
        return Finding("manifest", "skipped", one_line(error))
    if local.checkpoint_sha256 == info.served.checkpoint_sha256:
        return Finding("manifest", "ok", "the server serves the checkpoint of the repository")
    return Finding(
        "manifest", "failure",
        f"served {info.served.checkpoint_sha256[:12]}, repository {local.checkpoint_sha256[:12]}",
        "roll the repository out (SIGHUP to `nima serve`, or a new pod), or point at the right one",
    )  # fmt: skip


def _golden(client: nima_client.NimaClient, info: nima_client.ModelInfo) -> Finding:
    golden = load_golden()
    if golden is None or golden.checkpoint_sha256 != info.served.checkpoint_sha256:
        return Finding("golden score", "skipped", "no golden scores for this checkpoint")
    try:
        known = unchanged(golden, golden_photos())
    except ArtefactError as error:
        return Finding("golden score", "skipped", one_line(error))
    try:
        scores = client.score(list(known))
    except nima_client.NimaError as error:
        return Finding("golden score", "failure", one_line(error), _advice_for(error))
    worst, name = max(
        (abs(score.mean - expected.mean), expected.name)
        for score, expected in zip(scores, known.values(), strict=True)
    )
    detail = f"{len(scores)} photos, largest difference {worst:.4f} ({name})"
    if worst > GOLDEN_TOLERANCE:
        return Finding(
            "golden score", "failure", detail,
            "the engine or the preprocessing differs from the checkpoint's: run `nima verify`",
        )  # fmt: skip
    return Finding("golden score", "ok", detail)


def _latency(client: nima_client.NimaClient) -> Finding:
    photo, times = _small_photo(), []
    try:
        for _ in range(_LATENCY_REQUESTS):
            begin = time.monotonic()
            client.score_one(photo)
            times.append(1e3 * (time.monotonic() - begin))
    except nima_client.NimaError as error:
        return Finding("latency", "failure", one_line(error), _advice_for(error))
    times.sort()
    median, worst = times[len(times) // 2], times[-1]
    detail = f"{len(times)} single requests: median {median:.1f} ms, slowest {worst:.1f} ms"
    if median > _SLOW_MS:
        return Finding(
            "latency", "warning", detail,
            "a queue stands before the model, or its cores are taken: look at the queue below, "
            "and add instances or servers",
        )  # fmt: skip
    return Finding("latency", "ok", detail)
