"""Every default of the client, with its reason. No other module holds one."""

from __future__ import annotations

import os
from typing import Final

from nima_client.contract import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS

URL_VARIABLE: Final = "NIMA_URL"
"""Environment variable that names the server when a call does not."""

URL: Final = "127.0.0.1:8001"
"""Triton's usual gRPC address on this machine."""

REQUEST_SIZE: Final[int | None] = None
"""Images in a request. None takes what the server advises, as long as all of it stays busy: 4 on a
CPU came to 1.18 times the photos of one (docs/client.md), 32 on an H200 to 4.5 times
(docs/deploy-gpu.md). A bad image costs those that came with it a second trip."""

ADVISED_REQUEST_BYTES: Final = 2 * 1024 * 1024
"""Requests of as many images as the server advises are closed when they grow beyond this. Camera
originals gain little by sharing a request, and 17 requests of 32 would be gigabytes of them."""

MAX_IN_FLIGHT: Final = 16
"""Requests that one call keeps under way. Enough for the largest preferred batch of the bundled
configurations; a fast GPU far away wants more."""

REQUEST_TIMEOUT_S: Final = 30.0
"""Longest wait for one request. Scoring takes milliseconds; what is left is a queue."""

QUEUE_SHARE: Final = 0.5
"""Share of a request's time that it may spend in the server's queue (Triton's ``timeout``
parameter). With all of it the server hands out work that cannot end in time: at four times the
capacity a quarter of the goodput is left, with half of it three quarters (docs/reliability.md)."""

CONNECT_TIMEOUT_S: Final = 10.0
"""Longest wait for the contract check at connect, retries included."""

LONGEST_S: Final = 1e9
"""Longest time an option may name, 31 years. gRPC makes a passed deadline of much longer ones."""

RESTART_SECONDS = 1.0
"""A server that came back with other weights was silent for longer: it takes 1.2 s here."""

FACTS_SECONDS = 30.0
"""How long what a server said of its model holds at most. Of several servers that are replaced one
by one (a rolling update) no request need fail, and each calls its model version 1."""

RETRY_ATTEMPTS: Final = 10
"""Times one request is sent at most, so that a request that crashes its server ends. Refusals of
an overloaded server do not count: they cost it nothing, and say nothing of the request."""

RETRY_BUDGET_S: Final = 30.0
"""How long a call goes on while nothing succeeds. A supervised server is back in ten seconds."""

RETRY_INITIAL_BACKOFF_S: Final = 0.1
RETRY_MAX_BACKOFF_S: Final = 5.0
RETRY_MULTIPLIER: Final = 2.0
"""Waits of 0.1, 0.2, 0.4 … 5 s before jitter."""

RETRY_JITTER: Final = 0.5
"""Share of each wait that is random, so that clients do not come back in step."""

MAX_BYTES: Final = DEFAULT_MAX_BYTES
MAX_PIXELS: Final = DEFAULT_MAX_PIXELS
"""The server's own limits (nima_client.contract): what it would refuse is not uploaded."""

MAX_SIDE: Final[int | None] = None
"""Longest side above which a photo is made smaller before upload. Off: it changes the score by a
little (docs/client.md has the measurement)."""

DOWNSCALE_JPEG_QUALITY: Final = 95
"""Quality of the JPEG (4:4:4) that replaces a photo larger than ``max_side``, or a HEIC."""

HEIC_SIDE: Final = 2048
"""Longest side of the JPEG that replaces a HEIC. 14 camera originals, as JPEG of this size in the
place of every pixel: means move by 0.021 on average, where the originals' own JPEG has 0.020."""

PNG_COMPRESS_LEVEL: Final = 1
"""For arrays and PIL images, which travel as PNG: level 1 is the fastest that still filters."""

COMPRESSION: Final[str | None] = None
"""gRPC compression. Off: photos are compressed already, gzip took time and saved one percent
(docs/client.md)."""

# The server's minimum interval is 300 s: one ping sooner earns a GOAWAY. 350 s leaves room for
# clocks that drift; connections behind a balancer with a shorter idle timeout reconnect by retry.
KEEPALIVE_TIME_S: Final = 350.0
KEEPALIVE_TIMEOUT_S: Final = 20.0

MAX_MESSAGE_BYTES: Final = 2**31 - 1
"""gRPC's own maximum, of requests; the limits above decide."""

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""Largest answer that is taken, packed or not: gRPC's own default. The scores of 32 photos are 2 KB
and what a server says of its model as much; a broken or hostile one cannot fill the memory here."""

# gRPC waits up to 120 s before it tries a refused address again; our retries need it back sooner.
RECONNECT_INITIAL_MS: Final = 100
RECONNECT_MAX_MS: Final = 2000

CONNECT_ATTEMPT_MS: Final = 3000
"""Longest time that gRPC gives one try to connect (its ``min_reconnect_backoff_ms`` is that). With
TLS it takes three round trips of the line. It ends with a server that swallows everything."""

REORDER_WINDOW: Final = 1024
"""Results that ``score_iter(ordered=True)`` holds at most while an earlier one is outstanding."""


def default_url() -> str:
    """Address of the server for calls that name none: ``$NIMA_URL``, else ``127.0.0.1:8001``."""
    return os.environ.get(URL_VARIABLE) or URL
