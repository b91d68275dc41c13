"""Which files of a folder or an archive are photos, by their names' endings."""

from __future__ import annotations

import os
from collections import Counter

from nima_client import _heic

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
"""Photos that the server decodes; case does not matter."""

_OTHER_SUFFIXES = _heic.SUFFIXES | frozenset(
    (
        ".jxl", ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2",
        ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".rwl",
    )
)  # fmt: skip


def suffix_of(name: str) -> str:
    """The ending of a name or path, in small letters."""
    return os.path.splitext(name)[1].lower()


def scored_suffixes() -> frozenset[str]:
    """Endings of the photos that can be scored here: the server's, and HEIC with its extra."""
    return IMAGE_SUFFIXES | _heic.SUFFIXES if _heic.can_read() else IMAGE_SUFFIXES


def is_passed_over(suffix: str) -> bool:
    """Whether photos of this ending cannot be scored here; they are counted."""
    return suffix in _OTHER_SUFFIXES and suffix not in scored_suffixes()


def is_hidden(name: str) -> bool:
    """Whether the last part of a path begins with a dot."""
    return os.path.basename(name).startswith(".")


def is_photo(name: str) -> bool:
    """Whether a file of this name or path is a photo that the server decodes, and not hidden."""
    return not is_hidden(name) and suffix_of(name) in IMAGE_SUFFIXES


def passed_over_text(counts: Counter[str]) -> str:
    """``3 passed over: .heic (2), .cr2 (1)``, and what helps where something does."""
    endings = ", ".join(f"{ending} ({count})" for ending, count in counts.most_common())
    text = f"{counts.total()} passed over: {endings}"
    if not _heic.SUFFIXES.isdisjoint(counts):
        text += f"; {_heic.HOW_TO_GET}"
    return text
