"""``nima score`` as people type it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nima_client.cli.main import main


def run(*arguments: object, url: str | None = None, cwd: Path | None = None) -> Any:
    """``nima score`` with these arguments, inside this process (starting one takes a second)."""
    captured = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NIMA_URL", raising=False)
        if url is not None:
            patch.setenv("NIMA_URL", url)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "stdout", captured[0])
        patch.setattr(sys, "stderr", captured[1])
        with pytest.raises(SystemExit) as ended:
            main(["score", *map(str, arguments)])
    texts = []
    for stream in captured:
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess([], int(ended.value.code or 0), *texts)
