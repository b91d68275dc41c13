"""The page: a ranked gallery with every photo's ratings, filters, and the histogram of scores.

Nothing is fetched: style, script and thumbnails are inside the file, and a content security policy
allows only them, so that not even a hostile file name could run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima_client.contract import RATINGS
from nima_client.library.rows import Row
from nima_client.library.text import common_folder, printable
from nima_client.report.links import link_to
from nima_client.report.thumbnails import Thumbnails
from nima_client.results import percentile_text

# Means crowd within two ratings: coarser bins would show one hill.
_BIN = 0.1


@dataclass(frozen=True)
class ReportOptions:
    """How the page looks.

    Attributes:
        title: heading and window title.
        limit: only so many photos, the best ones; None for all.
        folder: where the page will lie: links to photos there and below are relative. None for a
            page that may be anywhere.
    """

    title: str = "Photo scores"
    limit: int | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Card:
    """One photo on the page."""

    rank: int
    path: str
    name: str
    folder: str
    shows_folder: bool
    row: Row
    thumbnail: str | None
    link: str | None
    bars: str
    percentile: str
    ratings: str


def build_page(
    rows: Sequence[Row],
    options: ReportOptions,
    thumbnails: Thumbnails,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> str:
    """The HTML of the page.

    Args:
        rows: the scores.
        options: title, limit and place.
        thumbnails: makes the pictures, and finds the files.
        progress: passes the photos through and may count them.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    import jinja2

    ranked = sorted(rows, key=lambda row: (-row.mean, row.file))[: options.limit]
    folder = common_folder([row.file for row in ranked])
    pictures = progress(thumbnails.make([row.file for row in ranked]))
    names = Counter(row.file.rpartition("/")[2] for row in ranked)
    cards = []
    for rank, (row, (_, picture)) in enumerate(zip(ranked, pictures, strict=True), 1):
        file = thumbnails.file_of(row.file)
        link = None if file is None else link_to(file, options.folder)
        cards.append(_card(rank, row, picture, link, folder, names))
    style, script = _asset("style.css"), _asset("script.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_asset("page.html"))
    return template.render(
        title=printable(options.title),
        cards=cards,
        folder=printable(folder),
        total=len(rows),
        summary=_summary(ranked),
        histogram=_histogram([row.mean for row in ranked]),
        checkpoints=sorted(
            {(printable(row.checkpoint), printable(row.checkpoint_sha256)) for row in ranked}
        ),
        style=_Verbatim(style),
        script=_Verbatim(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


class _Verbatim(str):
    """Our own style and script, which must not be escaped."""

    def __html__(self) -> str:
        return self


def _asset(name: str) -> str:
    folder = importlib.resources.files(__package__).joinpath("assets")
    return folder.joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """Content-security-policy source of an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _card(
    rank: int,
    row: Row,
    picture: str | None,
    link: str | None,
    folder: str,
    names: Mapping[str, int],
) -> Card:
    head, _, name = row.file[len(folder) :].rpartition("/")
    return Card(
        rank=rank,
        path=printable(row.file),
        name=printable(name),
        folder=printable(head),
        # Cameras count from 1 again in the next folder.
        shows_folder=bool(head) and names[name] > 1,
        row=row,
        thumbnail=picture,
        link=link,
        bars=_bars(row.distribution),
        percentile="" if row.percentile is None else percentile_text(row.percentile),
        ratings=",".join(f"{p:.4f}" for p in row.distribution),
    )


def _bars(distribution: Sequence[float]) -> str:
    """SVG path of ten bars in a box of 100 by 30, scaled to the highest."""
    peak = max(distribution) or 1.0
    parts = []
    for number, p in enumerate(distribution):
        height = max(30.0 * p / peak, 0.6)
        parts.append(f"M{number * 10 + 1},30v-{height:.1f}h8v{height:.1f}z")
    return "".join(parts)


def _histogram(means: Sequence[float]) -> list[dict[str, float]]:
    """Bins of the score histogram: geometry in a box of 900 by 100, range and count."""
    low, high = RATINGS[0], RATINGS[-1]
    bins = round((high - low) / _BIN)
    counts = [0] * bins
    for mean in means:
        counts[min(bins - 1, max(0, int((mean - low) / _BIN + 1e-9)))] += 1
    peak = max(counts, default=0) or 1
    # One photo among thousands, the best perhaps, is to be seen.
    heights = [max(100 * count / peak, 2.0) if count else 0.0 for count in counts]
    width = 900 / bins
    return [
        {
            "x": round(number * width + 0.5, 2),
            "width": round(width - 1, 2),
            "y": round(100 - height, 2),
            "height": round(height, 2),
            "low": round(low + number * _BIN, 2),
            "high": round(low + (number + 1) * _BIN, 2),
            "count": count,
        }
        for number, (count, height) in enumerate(zip(counts, heights, strict=True))
    ]


def _summary(rows: Sequence[Row]) -> dict[str, str]:
    if not rows:
        return {}
    means = [row.mean for row in rows]
    return {
        "Best": f"{max(means):.2f}",
        "Median": f"{statistics.median(means):.2f}",
        "Worst": f"{min(means):.2f}",
    }
