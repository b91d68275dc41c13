"""A pipeline with asyncio: photos arrive, are scored as they come, and the best are kept.

    python examples/asyncio_pipeline.py FOLDER [--keep 5]

The stream may be endless: memory stays constant, and a slow server slows the producer down.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from nima_client import AsyncNimaClient, ImageFailure, NimaError
from nima_client.library.sources import SourceError, find_photos


async def arriving_photos(paths: Iterable[Path]) -> AsyncIterator[Path]:
    """Stands in for a queue, a socket or a watched folder."""
    for path in paths:
        await asyncio.sleep(0)
        yield path


async def run(paths: Iterable[Path], keep: int) -> list[tuple[float, str]]:
    """The best photos: mean and name, best first."""
    best: list[tuple[float, str]] = []
    async with AsyncNimaClient() as client:
        # As they complete: nobody waits for a slow neighbour. `index` and `source` tell which.
        stream = client.score_iter(arriving_photos(paths), ordered=False, on_error="return")
        async for result in stream:
            if isinstance(result, ImageFailure):
                print(f"skipped {result.message}")
                continue
            heapq.heappush(best, (result.mean, result.source or ""))
            if len(best) > keep:
                heapq.heappop(best)
    return sorted(best, reverse=True)


def main() -> None:
    """Print the best photos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=int, default=5)
    given = parser.parse_args()
    try:
        best = asyncio.run(run(find_photos([given.folder]).files, given.keep))
    except (SourceError, NimaError) as error:
        sys.exit(str(error))
    for mean, name in best:
        print(f"{mean:.2f}  {name}")


if __name__ == "__main__":
    main()
