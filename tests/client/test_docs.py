"""The API reference is up to date, the guide's code is code, and links lead somewhere."""

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


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on the repository's host."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def dead_links(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize(
    "page",
    sorted(
        {
            *REPOSITORY.glob("*.md"),
            *REPOSITORY.glob("docs/*.md"),
            *REPOSITORY.glob("benchmarks/**/*.md"),
        }
    ),
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


def test_a_dead_link_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What `it` is\n[a](#what-it-is) [b](page.md#gone) [c](gone.md) [d](https://e.f)"
    )
    assert list(dead_links(page)) == ["page.md#gone", "gone.md"]
