"""Liveness as an inference: the embedded server's own health stays green with a dead stub."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Any

from nima_build.server._security import ServerTLS
from nima_build.triton_client import still_works, triton_client
from nima_client._status import status_error
from nima_client.contract import INPUT_IMAGE, MODEL_NAME, OUTPUT_MEAN
from nima_client.errors import QueueFull, QueueTimeout

# A 16x16 grey JPEG: decoding it costs next to nothing and walks the whole path.
_PROBE_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwc"
    "KDcpLDAxNDQ0Hyc5PTgyPC4zNDL/wAALCAAQABABAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QA"
    "tRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0"
    "NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2"
    "t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/ACiiiv/Z"
)


# A certificate that ran out is noticed by those who connect anew. A minute in `nima serve`.
_PROBES_A_CONNECTION = 12


@dataclass(frozen=True)
class ProbeResult:
    """Outcome of one probe.

    Attributes:
        alive: whether a finite mean rating came back in time, or the server is too busy for the
            probe and gets through other photos.
        seconds: how long it took.
        reason: why it is not alive; empty when it is.
    """

    alive: bool
    seconds: float
    reason: str = ""


class Probe:
    """Scores one tiny photo over gRPC.

    Args:
        url: ``host:port`` of the gRPC endpoint.
        timeout: seconds an answer may take.
        tls: how the server encrypts; the probe is then a client of it.
    """

    def __init__(self, url: str, timeout: float = 10.0, tls: ServerTLS | None = None) -> None:
        import numpy as np
        import tritonclient.grpc as triton

        self._url = url
        self._timeout = timeout
        self._tls = tls
        image = triton.InferInput(INPUT_IMAGE, [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[_PROBE_JPEG]], dtype=np.object_))
        self._inputs = [image]
        self._outputs = [triton.InferRequestedOutput(OUTPUT_MEAN)]
        self._client: Any = None
        self._probes_left = 0

    def __call__(self) -> ProbeResult:
        """Send the probe; never raises."""
        start = time.monotonic()
        if self._probes_left == 0:
            self.close()
        try:
            if self._client is None:
                self._client, self._probes_left = self.connect(), _PROBES_A_CONNECTION
            self._probes_left -= 1
            answer = self._client.infer(
                MODEL_NAME, self._inputs, outputs=self._outputs, client_timeout=self._timeout
            )
            mean = float(answer.as_numpy(OUTPUT_MEAN)[0, 0])
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            turned_away = _at_the_queue(error)
            busy = turned_away and still_works(self._client, self._timeout)
            if turned_away and not busy:
                reason = f"no photo gets through, and the queue says: {reason}"
            # A new connection next time: gRPC's own reconnect backs off for up to 20 seconds.
            self.close()
            return ProbeResult(busy, time.monotonic() - start, reason)
        if not 1.0 <= mean <= 10.0:
            return ProbeResult(False, time.monotonic() - start, f"mean rating {mean}")
        return ProbeResult(True, time.monotonic() - start)

    def connect(self) -> Any:
        """A new ``InferenceServerClient``, encrypted as the server is."""
        return triton_client(self._url, self._tls.of_client() if self._tls else None)

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _at_the_queue(error: Exception) -> bool:
    """Whether the queue did not let the request in, or kept it too long."""
    from tritonclient.utils import InferenceServerException

    if not isinstance(error, InferenceServerException):
        return False
    status = str(error.status()).rpartition(".")[2]
    return isinstance(status_error(status, str(error.message())), (QueueFull, QueueTimeout))
