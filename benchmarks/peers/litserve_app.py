"""LitServe: an inference worker a core (``workers_per_device``), the file as a multipart upload.

``fast_queue`` (ZeroMQ) is what LitServe's own documentation advises above 100 requests a second.
"""

from __future__ import annotations

import sys

import litserve
from scoring import make_scorer


class NimaAPI(litserve.LitAPI):
    """decode_request, predict and encode_response run in the inference worker."""

    def setup(self, device: str) -> None:
        """Load the network."""
        self._scorer = make_scorer()

    def decode_request(self, request):
        """The uploaded file."""
        return request["image"].file.read()

    def predict(self, x: bytes):
        """Scores of one file."""
        return self._scorer(x)

    def encode_response(self, output):
        """Already JSON-ready."""
        return output


if __name__ == "__main__":
    port, workers = int(sys.argv[1]), int(sys.argv[2])
    server = litserve.LitServer(
        NimaAPI(api_path="/score"),
        accelerator="cpu",
        devices=1,
        workers_per_device=workers,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )
