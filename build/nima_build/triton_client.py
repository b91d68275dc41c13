"""Triton's own client, for what ``nima_client`` has no call for: statistics, model control."""

from __future__ import annotations

import time
from typing import Any

from nima_client._address import normalise_url
from nima_client._connection import TLS, Connection
from nima_client.contract import NETWORK_MODEL, PIXELS, PREPROCESS_MODEL

_POLL_SECONDS = 0.1


def triton_client(url: str, tls: TLS | None = None) -> Any:
    """A ``tritonclient.grpc.InferenceServerClient``; connects at its first call.

    Args:
        url: gRPC address, as :class:`nima_client.NimaClient` takes it.
        tls: encryption; None speaks plain text unless the address asks for TLS (``grpcs://``).

    Raises:
        OSError: a file of ``tls`` cannot be read.
        ValueError: not an address.
    """
    import grpc
    import tritonclient.grpc as triton

    target, encrypted = normalise_url(url)
    if tls is None and encrypted:
        tls = TLS()
    # Those of the product's own client: this machine's loopback is not dialled through a proxy.
    options = Connection(target, tls, keepalive_s=None).channel_options()
    credentials = None if tls is None else grpc.ssl_channel_credentials(*tls.read())
    return triton.InferenceServerClient(target, creds=credentials, channel_args=options)


def still_works(client: Any, seconds: float) -> bool:
    """Whether a server that turned a request away at its queue gets anything done.

    A queue turns requests away alike when there is too much work and when nobody takes it out: all
    decoders hang, or the network does and they wait for it. So look whether photos get through; and
    if decoders alone move (files that are refused, or a network that hangs), ask the network.

    Args:
        client: of :func:`triton_client`.
        seconds: how long to look; longer than the server may need for one photo.
    """
    import numpy as np
    import tritonclient.grpc as triton

    end = time.monotonic() + seconds
    try:
        before = _successes(client)
        while (left := end - time.monotonic()) > 0:
            now = _successes(client)
            if now[NETWORK_MODEL] > before[NETWORK_MODEL]:
                return True
            if now[PREPROCESS_MODEL] > before[PREPROCESS_MODEL]:
                shape = [1, *client.get_model_metadata(NETWORK_MODEL).inputs[0].shape[1:]]
                pixels = triton.InferInput(PIXELS, shape, "UINT8")
                pixels.set_data_from_numpy(np.zeros(shape, np.uint8))
                client.infer(NETWORK_MODEL, [pixels], client_timeout=left)
                return True
            time.sleep(_POLL_SECONDS)
    except triton.InferenceServerException:
        return False
    return False


def _successes(client: Any) -> dict[str, int]:
    """Requests that each step has answered, all its versions together."""
    found = dict.fromkeys((PREPROCESS_MODEL, NETWORK_MODEL), 0)
    for model in client.get_inference_statistics().model_stats:
        if model.name in found:
            found[model.name] += model.inference_stats.success.count
    return found
