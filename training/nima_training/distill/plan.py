"""What a work directory was made from, so that no other run takes its files for its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nima_client._files import sha256_file
from nima_training.distill.config import DistillConfig

FREE_FIELDS = frozenset({"photos", "teacher", "work_dir", "out", "name", "workers", "threads"})
"""Fields of a run that may change between a kill and the command that goes on: where things are,
and how fast. Photos and teacher are held by their names and by a hash."""


def run_plan(config: DistillConfig, photos: dict[str, list[Path]]) -> dict[str, Any]:
    """All that decides what a run makes in its work directory."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_FIELDS}
    return {
        **settings,
        "teacher": sha256_file(config.teacher),
        "photos": names_sha256(path for part in photos.values() for path in part),
    }


def names_sha256(photos: Iterable[Path]) -> str:
    """Hash of the file names, in their order."""
    return hashlib.sha256("\n".join(path.name for path in photos).encode()).hexdigest()


def same_plan(file: Path, plan: dict[str, Any], remedy: str) -> bool:
    """Whether ``file`` holds ``plan``; False where there is no file.

    Raises:
        ValueError: it holds another; names what differs, and ``remedy``.
    """
    if not file.exists():
        return False
    known, plan = json.loads(file.read_text()), json.loads(json.dumps(plan))
    if changed := sorted(n for n in known.keys() | plan.keys() if known.get(n) != plan.get(n)):
        raise ValueError(
            f"{file.parent} was made with other settings ({', '.join(changed)}): {remedy}"
        )
    return True
