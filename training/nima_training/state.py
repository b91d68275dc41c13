"""Resumable state of a run: tensors, numbers and containers, loaded without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nima_client._files import atomic_file


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically: a kill at any moment leaves the old or the new file, whole."""
    with atomic_file(path, "wb") as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read :func:`save_state` back (``weights_only``, on the CPU); None if there is no file."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
