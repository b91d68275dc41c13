"""Copies of the model repository with one thing changed, for benchmarks that compare choices."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nima_build.repository import config_path, read_config


def copy_repository(source: Path, target: Path) -> Path:
    """A copy of a model repository at ``target``, which must not be there yet."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__")))


@contextlib.contextmanager
def edit_config(repository: Path, model: str, profile: str) -> Iterator[Any]:
    """The config (``inference.ModelConfig``) of a model in a profile; changes to it are written.

    Raises:
        ArtefactError: there is none, or it cannot be parsed.
    """
    from google.protobuf import text_format

    path = config_path(repository, model, profile)
    config = read_config(path)
    yield config
    path.write_text(text_format.MessageToString(config))
