"""The API reference is up to date, and the guide's code is code."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="signatures print as on Python 3.11")
def test_the_api_reference_is_up_to_date() -> None:
    script = REPOSITORY / "scripts" / "client_api_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("client*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_guides_compiles_and_names_what_exists(page: Path) -> None:
    import nima_client

    text = page.read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert programs
    for code in programs:
        plain = re.sub(r"^(>>>|\.\.\.) ?", "", code, flags=re.MULTILINE)
        compile(plain, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for name in re.findall(r"nima_client\.([A-Z]\w+)", plain):
            assert hasattr(nima_client, name), name
        assert list(missing(plain)) == []


def missing(program: str) -> Iterator[str]:
    """What a program imports of this project that is not there."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names):
                # Found, not loaded: what it needs (Ray) may not be installed.
                if name.startswith("nima_") and importlib.util.find_spec(name) is None:
                    yield name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nima_"):
            module = importlib.import_module(str(node.module))
            yield from (
                f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)
            )


def test_a_name_that_is_not_there_is_missed() -> None:
    program = "from nima_client import NimaClient, Absent\nimport nima_client.nowhere, os\n"
    assert list(missing(program)) == ["nima_client.Absent", "nima_client.nowhere"]
