"""Where the time of a request goes, from Triton's own statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from nima_build.bench import BenchError
from nima_build.triton_client import triton_client
from nima_client.contract import MODEL_NAME, NETWORK_MODEL, PREPROCESS_MODEL


@dataclass(frozen=True)
class Stages:
    """Mean milliseconds of a request in each stage, inside the server.

    Attributes:
        requests: how many succeeded.
        queue: waiting for an instance, both steps together.
        decode: inside ``nima_preprocess``, its copies included.
        network: inside ``nima_network``, its copies included.
        server: all of the server, from the first step to the answer.
    """

    requests: int
    queue: float
    decode: float
    network: float
    server: float

    def transport(self, latency: float) -> float:
        """What a client sees and the server does not: network, encoding, the client's own.

        Args:
            latency: the client's mean in ms, since ``server`` is a mean. Below zero by a little
                where the two did not count the very same requests.
        """
        return latency - self.server

    def to_dict(self) -> dict[str, float]:
        """JSON-ready fields."""
        return asdict(self)


class StageMeter:
    """Differences of the server's statistics between two looks.

    Args:
        url: ``host:port`` of the gRPC endpoint.

    Raises:
        BenchError: no server answers there.
    """

    def __init__(self, url: str) -> None:
        from tritonclient.utils import InferenceServerException

        self._url, self._error = url, InferenceServerException
        self._client = triton_client(url)
        try:
            self._last = self._read()
        except BenchError:
            self._client.close()
            raise

    def _read(self) -> dict[str, tuple[int, int, int, int]]:
        """Per model: successful requests, and nanoseconds of all, queue and compute."""
        try:
            statistics = self._client.get_inference_statistics()
        except self._error as error:
            raise BenchError(f"no Triton answers at {self._url} ({error.message()})") from None
        read = {}
        for entry in statistics.model_stats:
            stats = entry.inference_stats
            compute = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
            read[entry.name] = (stats.success.count, stats.success.ns, stats.queue.ns, compute)
        return read

    def lap(self) -> Stages | None:
        """Means since the last look; None when no request succeeded in between, or when the server
        was restarted and counts anew.

        Raises:
            BenchError: the server no longer answers.
        """
        before, self._last = self._last, self._read()

        def mean(model: str, field: int) -> float:
            zero = (0, 0, 0, 0)
            now, then = self._last.get(model, zero), before.get(model, zero)
            count = now[0] - then[0]
            return (now[field] - then[field]) / count / 1e6 if count else 0.0

        requests = self._last.get(MODEL_NAME, (0,))[0] - before.get(MODEL_NAME, (0,))[0]
        if requests <= 0:
            return None
        return Stages(
            requests=requests,
            queue=mean(PREPROCESS_MODEL, 2) + mean(NETWORK_MODEL, 2),
            decode=mean(PREPROCESS_MODEL, 3),
            network=mean(NETWORK_MODEL, 3),
            server=mean(MODEL_NAME, 1),
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
