"""libtiff fills standard error with what it thinks of a file, unless it is silenced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BOMBS = Path(__file__).resolve().parents[1] / "reliability"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import _bombs
from nima_client.preprocess import ImageRejected, PreprocessSpec, preprocess, silence_libtiff
if sys.argv[2] == "silenced":
    print(silence_libtiff())
for data in (_bombs.tiff_fax_noise(2_000), b"II*\\0\\x08\\0\\0\\0\\x01\\0" + bytes(64)):
    try:
        print(preprocess(data, PreprocessSpec()).shape)
    except ImageRejected as refusal:
        print(refusal.code.value)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the library by /proc")
def test_libtiff_is_silenced_and_says_the_same_by_exceptions():
    ended = {
        how: subprocess.run(
            [sys.executable, "-c", PROGRAM, str(BOMBS), how],
            capture_output=True, text=True, timeout=60, check=True,
        )
        for how in ("as it is", "silenced")
    }  # fmt: skip
    assert len(ended["as it is"].stderr) > 50_000, "what this is for is gone from libtiff"
    assert ended["silenced"].stderr == ""
    assert ended["silenced"].stdout == "True\n" + ended["as it is"].stdout
