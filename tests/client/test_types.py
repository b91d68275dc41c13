"""What a type checker says of programs that use the client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import contextlib
import nima_client
from nima_client import AsyncNimaClient, NimaClient

class Mine(NimaClient):
    def best(self, photos: list[str]) -> float:
        with self as same, contextlib.closing(same.score_iter(photos)) as scores:
            return max(score.mean for score in scores) + len(same.best.__name__)

class AsyncMine(AsyncNimaClient):
    async def best(self, photos: list[str]) -> float:
        async with self as same, contextlib.aclosing(same.score_iter(photos)) as scores:
            return max([score.mean async for score in scores]) + len(same.best.__name__)

limits: nima_client.preprocess.Limits
error: nima_client.errors.NimaError
nima_client.scroe(["beach.jpg"])
"""


def test_programs_are_checked_as_they_run(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    asked = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(program)]
    said = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, timeout=240).stdout
    errors = [line.partition("error: ")[2] for line in said.splitlines() if "error: " in line]
    assert len(errors) == 1, said
    assert '"scroe"' in errors[0]
