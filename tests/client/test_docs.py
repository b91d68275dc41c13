"""The API reference is up to date, and the guide's code is code."""

from __future__ import annotations

import re
import subprocess
import sys
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


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").glob("client*.md")))
def test_python_in_the_guides_compiles_and_names_what_exists(page: Path) -> None:
    import nima_client

    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        plain = re.sub(r"^(>>>|\.\.\.) ?", "", code, flags=re.MULTILINE)
        compile(plain, str(page), "exec", flags=__import__("ast").PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for name in re.findall(r"nima_client\.([A-Z]\w+)", plain):
            assert hasattr(nima_client, name), name
