"""The Spark example on a local Spark with the real embedded Triton.

Spark is large and needs Java: it is in no extra, and this is skipped where it is not installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="no pyspark here (pip install pyspark; it needs Java 17)")

JOB = Path(__file__).parent / "support" / "spark_job.py"


@pytest.mark.timeout(300)
def test_the_example_scores_a_folder(loopback_only: list[str], tmp_path: Path) -> None:
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("no Java here (Debian: apt-get install openjdk-17-jre-headless)")
    done = subprocess.run(
        [*loopback_only, sys.executable, str(JOB), str(tmp_path)],
        capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert json.loads(line.removeprefix("REPORT ")) == {
        "rows": 41,
        "bad": ["UNSUPPORTED", None],
        "codes": ["None"],
        "equal": True,
    }
