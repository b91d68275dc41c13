"""Ray Serve: a replica a core behind its HTTP proxy, with its settings for throughput.

Ray binds to the machine's own address and not only to loopback: ``compare.py`` runs everything in a
network namespace whose only interface is ``lo``.
"""

from __future__ import annotations

import signal
import sys
import threading

import ray
from ray import serve
from scoring import make_scorer
from starlette.requests import Request
from starlette.responses import JSONResponse


class Nima:
    """One replica."""

    def __init__(self) -> None:
        self._scorer = make_scorer()

    async def __call__(self, request: Request) -> JSONResponse:
        """Score the image in the body."""
        return JSONResponse(self._scorer(await request.body()))


def main(port: int, workers: int, folder: str) -> None:
    """Serve until ended."""
    # A CPU each for the replicas, none for the controller and the proxy, which Ray wants zero of.
    ray.init(num_cpus=workers, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = serve.deployment(
        num_replicas=workers,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=64,
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )(Nima)
    serve.run(deployment.bind(), name="nima", route_prefix="/score")
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    done.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
