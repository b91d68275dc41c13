"""Checks of `nima doctor` of the model: who serves it, whether it scores, what, and how fast."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import nima_client
from nima_build.doctor._finding import Finding, one_line, small_photo
from nima_build.golden import golden_photos, load_golden, unchanged
from nima_build.metadata import ArtefactError
from nima_build.repository import load_metadata
from nima_client.contract import CONTRACT_VERSION

GOLDEN_TOLERANCE = 0.05
"""Largest difference of a golden mean: every engine keeps within it (docs/deploy-gpu.md)."""
_LATENCY_REQUESTS = 25
_SLOW_MS = 1000.0


def advice_for(error: nima_client.NimaError) -> str:
    """What to do about an error of the SDK."""
    if isinstance(error, nima_client.TLSError):
        return "give the authority of the server's certificate (--tls-ca), or check its names"
    if isinstance(error, nima_client.AuthenticationError):
        return "give the header the server expects (--header name=value)"
    if isinstance(error, nima_client.ContractError):
        return "check that this is a NIMA server, and update the older of client and server"
    if isinstance(error, nima_client.ConnectError):
        return (
            "check the port (gRPC is 8001 unless told otherwise) and TLS (--tls-ca, with mutual "
            "TLS --tls-cert and --tls-key too); if they are right, look at the server's log"
        )
    return "look at the server's log; `nima serve` restarts what died"


def contract(info: nima_client.ModelInfo) -> Finding:
    """The contract, the model and the checkpoint that the server names."""
    served = info.served
    detail = (
        f"contract {served.contract_version}, {info.name} version {','.join(info.versions)}, "
        f"{served.checkpoint_name} checkpoint {served.checkpoint_sha256[:12]}"
        f"{', int8' if served.precision == 'int8' else ''}"
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


def versions(info: nima_client.ModelInfo) -> Finding:
    """A rollout has two versions of the ensemble loaded for seconds only."""
    if len(info.versions) == 1:
        return Finding("versions", "ok", f"only version {info.versions[0]} is loaded")
    return Finding(
        "versions", "warning", f"versions {', '.join(info.versions)} are loaded side by side",
        "a rollout is under way, or ended half way: look again in a minute, then restart the "
        "server; it loads the version that its repository names",
    )  # fmt: skip


def scoring(client: nima_client.NimaClient) -> Finding:
    """Health endpoints stay green with a dead Python model; only a score shows that it works."""
    try:
        score = client.score_one(small_photo())
    except nima_client.NimaError as error:
        return Finding("scoring", "failure", one_line(error), advice_for(error))
    total = sum(score.distribution)
    if not (abs(total - 1) < 1e-3 and 1 <= score.mean <= 10):
        return Finding(
            "scoring", "failure", f"mean {score.mean:.3f}, probabilities sum to {total:.4f}",
            "the engine is broken: build it again and run `nima verify`",
        )  # fmt: skip
    return Finding("scoring", "ok", f"a photo was scored by version {score.model_version}")


def served_is_local(info: nima_client.ModelInfo, repository: Path) -> Finding:
    """The checkpoint served against the one in the repository."""
    try:
        local = load_metadata(repository)
    except (ArtefactError, OSError) as error:
        return Finding("manifest", "skipped", one_line(error))
    if local.checkpoint_sha256 == info.served.checkpoint_sha256:
        return Finding("manifest", "ok", "the server serves the checkpoint of the repository")
    return Finding(
        "manifest", "failure",
        f"served {info.served.checkpoint_sha256[:12]}, repository {local.checkpoint_sha256[:12]}",
        "roll the repository out (SIGHUP to `nima serve`, or a new pod), or point at the right one",
    )  # fmt: skip


def golden(client: nima_client.NimaClient, info: nima_client.ModelInfo) -> Finding:
    """Known photos against the scores that the checkpoint gave them in PyTorch."""
    kept = load_golden()
    if kept is None or kept.checkpoint_sha256 != info.served.checkpoint_sha256:
        return Finding("golden score", "skipped", "no golden scores for this checkpoint")
    try:
        known = unchanged(kept, golden_photos())
    except ArtefactError as error:
        return Finding("golden score", "skipped", one_line(error))
    if not known:
        return Finding("golden score", "skipped", "scikit-image here ships none of these photos")
    try:
        scores = client.score(list(known))
    except nima_client.NimaError as error:
        return Finding("golden score", "failure", one_line(error), advice_for(error))
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


def latency(client: nima_client.NimaClient) -> Finding:
    """Single requests one after the other, from here."""
    photo, times = small_photo(), []
    try:
        for _ in range(_LATENCY_REQUESTS):
            begin = time.monotonic()
            client.score_one(photo)
            times.append(1e3 * (time.monotonic() - begin))
    except nima_client.NimaError as error:
        return Finding("latency", "failure", one_line(error), advice_for(error))
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


def same_everywhere(served: Mapping[str, nima_client.ModelInfo], count: int) -> Finding:
    """Whether every server behind one address gives the same scores.

    Args:
        served: what each server that answered says of its model.
        count: servers behind the address.
    """
    by_checkpoint: dict[str, list[str]] = {}
    by_precision: dict[str, list[str]] = {}
    for url, info in served.items():
        model = f"{info.served.checkpoint_sha256[:12]}, {info.served.preprocessing_id}"
        by_checkpoint.setdefault(model, []).append(url)
        by_precision.setdefault(info.served.precision or "of an engine", []).append(url)
    differ = "servers behind one address differ:"
    if len(by_checkpoint) > 1:
        return Finding(
            "same model", "failure", f"{differ} {_listed(by_checkpoint)}",
            "finish the rollout or roll back: a photo's score depends on which server answers",
        )  # fmt: skip
    if len(served) < count:
        return Finding(
            "same model", "failure", f"{count - len(served)} of {count} servers did not answer",
            "see their findings above",
        )  # fmt: skip
    if len(by_precision) > 1:
        return Finding(
            "same model", "warning", f"{differ} precision {_listed(by_precision)}",
            "serve one precision: a photo's score depends a little on which server answers",
        )  # fmt: skip
    return Finding("same model", "ok", f"{count} servers serve one checkpoint")


def _listed(urls: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{what} at {', '.join(at)}" for what, at in urls.items())
