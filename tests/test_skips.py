"""A run that skips what it should not is told, and fails in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


@pytest.mark.parametrize(
    ("reason", "told", "status"),
    [
        ("no pyspark here (pip install pyspark; it needs Java 17)", False, 0),
        ("no Chromium here (Debian: apt-get install chromium)", True, 0),
        ("simplejpeg is not installed", True, 1),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["test", "file"])
def test_a_skip_that_nobody_expects_fails_a_strict_run(
    tmp_path: Path, reason: str, told: bool, status: int, whole: bool
) -> None:
    shutil.copy(CONFTEST, tmp_path)
    skip = f"pytest.skip({reason!r}, allow_module_level={whole})"
    body = f"import pytest\n{skip}" if whole else f"import pytest\ndef test_b():\n    {skip}"
    (tmp_path / "test_skipping.py").write_text(body + "\n")
    (tmp_path / "test_passing.py").write_text("def test_a(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    plain = {k: v for k, v in os.environ.items() if k not in ("NIMA_SKIPS_FAIL", "PYTEST_ADDOPTS")}
    plain["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take seconds to load
    for strict, expected in (({}, 0), ({"NIMA_SKIPS_FAIL": "1"}, status)):
        done = subprocess.run(
            command, env={**plain, **strict}, cwd=tmp_path, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == expected, done.stdout + done.stderr
        assert ("NOT TESTED HERE" in done.stdout) is told
        assert "1 passed, 1 skipped" in done.stdout
