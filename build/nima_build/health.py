"""``python -m nima_build.health HOST:PORT``: does the server answer an inference?

Triton's own health endpoints stay green when a Python model has died; this sends a photo.
"""

from __future__ import annotations

import io
import sys

import nima_client


def check(url: str, timeout: float = 8.0) -> str:
    """Score one small photo.

    Returns:
        Empty when the server answered, else the reason in one line.
    """
    from PIL import Image

    photo = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(photo, "JPEG")
    try:
        with nima_client.NimaClient(url, retry=nima_client.NO_RETRIES) as client:
            client.score_one(photo.getvalue(), timeout=timeout)
    except nima_client.OverloadError:
        # It answers; to restart it, or to take it out of service, would only move the load.
        return ""
    except nima_client.NimaError as error:
        return " ".join(str(error).split())
    return ""


def main(arguments: list[str]) -> int:
    """Exit status for a health check: 0 alive, 1 not."""
    if len(arguments) != 1:
        print("usage: python -m nima_build.health HOST:PORT", file=sys.stderr)
        return 2
    reason = check(arguments[0])
    if reason:
        print(f"not healthy: {reason}", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
