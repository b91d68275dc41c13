"""Which commit a checkpoint says it is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nima_training import checkpoint


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    command = ["git", *who, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_package_not_of_a_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "venv" / "nima_training"
    package.mkdir(parents=True)
    (package / "checkpoint.py").write_text("")
    monkeypatch.setattr(checkpoint, "__file__", str(package / "checkpoint.py"))
    git(tmp_path, "init", "-q")
    (tmp_path / "own.py").write_text("")
    git(tmp_path, "add", "own.py")
    git(tmp_path, "commit", "-qm", "one")
    assert checkpoint.git_commit() is None
    git(tmp_path, "add", "venv")
    git(tmp_path, "commit", "-qm", "two")
    assert checkpoint.git_commit() == git(tmp_path, "rev-parse", "HEAD")
    (package / "checkpoint.py").write_text("# changed")
    assert checkpoint.git_commit() == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
