"""Names and counts of files as people read them: on a terminal, on a page."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence

# Inside emoji and in Persian or Hindi words.
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


def printable(text: str) -> str:
    """Text without what would command a terminal or turn the direction of writing on a page.

    Other spaces than the usual one stay (macOS puts one into the names of screenshots), which
    ``str.isprintable`` refuses.
    """
    return "".join(c if _is_shown(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def counted(count: int, thing: str) -> str:
    """``1 photo``, ``2 photos``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sort key that counts the digits in a name as numbers: 2.jpg comes before 10.jpg."""
    parts = re.split(r"0*([0-9]+)", name)
    # The longer number is the larger one; as an int it might have more digits than Python takes.
    numbers = ((len(p), p) if p.isdecimal() else (-1, p.casefold()) for p in parts)
    return tuple(numbers), name


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
