"""Names and numbers of files as text for people: on a terminal, on a page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def printable(text: str) -> str:
    """Text without what would command a terminal or turn the direction of writing on a page."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def counted(count: int, thing: str) -> str:
    """``1 photo``, ``2 photos``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def common_folder(names: Sequence[str]) -> str:
    """The folder that all names share, with its slash; empty where there is none."""
    if len(names) < 2:
        return ""
    shared = names[0].split("/")[:-1]
    for name in names[1:]:
        parts = name.split("/")[:-1]
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(shared, parts))
        shared = [part for part, _ in pairs]
    return "".join(part + "/" for part in shared)
