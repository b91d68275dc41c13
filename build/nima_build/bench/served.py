"""What a server that is measured says it runs, held against what the limit runs."""

from __future__ import annotations

from nima_build.bench import BenchError
from nima_build.metadata import ModelMetadata


def served_network(url: str, metadata: ModelMetadata, precision: str) -> str:
    """Name, checkpoint and precision of the network behind ``url``, for the report.

    Args:
        url: ``host:port`` of the gRPC endpoint.
        metadata: the network whose graph the limit runs.
        precision: ``fp32`` or ``int8``: that graph.

    Raises:
        BenchError: no NIMA server answers, or it runs something else: shares of the limit would
            compare two networks.
    """
    from nima_client import NimaClient, NimaError

    try:
        with NimaClient(url) as client:
            served = client.model_info().served
    except NimaError as error:
        raise BenchError(f"{url} cannot be measured: {error}") from None
    limit = metadata.served()
    if (served.checkpoint_sha256, served.preprocessing_id) != (
        limit.checkpoint_sha256,
        limit.preprocessing_id,
    ):
        raise BenchError(
            f"{url} serves {served.checkpoint_name} ({served.checkpoint_sha256[:12]}, "
            f"preprocessing {served.preprocessing_id}), but the limit would run {metadata.name} "
            f"({limit.checkpoint_sha256[:12]}, preprocessing {limit.preprocessing_id}): give "
            "--model-repository with what that server serves"
        )
    if served.precision != precision:
        runs = served.precision or "the precision of its engine"
        advice = "`nima bench` knows no limit for that"
        if served.precision:
            advice = f"give --precision {served.precision}"
        raise BenchError(f"{url} runs {runs}, but the limit would run {precision}: {advice}")
    return f"{served.checkpoint_name} ({served.checkpoint_sha256[:12]}), {served.precision}"
