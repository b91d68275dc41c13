"""Resumable state of a run: tensors, numbers and containers, loaded without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nima_client._files import atomic_file


class StateError(ValueError):
    """A state file that cannot be read; the message says what to do."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically: a kill at any moment leaves the old or the new file, whole.

    Raises:
        OSError: it could not be written; the old file stands.
    """
    with atomic_file(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's own error hides a full disk
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict[str, Any] | None:
    """Read :func:`save_state` back (``weights_only``, on the CPU); None if there is no file.

    Raises:
        StateError: the file is damaged, or no state of a run.
        OSError: it is there and cannot be opened.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # zip reader and unpickler refuse in many ways, OSError among them
            state = None
    if not isinstance(state, dict):
        raise StateError(
            f"{path} is damaged: put a copy of it back, or delete it to start from the beginning"
        )
    return state
