"""Where the bundled checkpoint lies in a checkout."""

from __future__ import annotations

from pathlib import Path

BUNDLED_CHECKPOINT = (
    Path(__file__).resolve().parents[2] / "training" / "checkpoints" / "nima_mobilenet"
)
"""The checkpoint whose export is committed; absent in an installed wheel."""
