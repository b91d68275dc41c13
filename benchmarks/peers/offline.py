"""Programs that score files without a server (``offline_app.py``), run in turn with the product."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from guard import guarded
from http_load import LoadError
from servers import HERE, Setting

NAMES = {
    "keras": "Keras as idealo/image-quality-assessment predicts (MobileNet, width 0.75)",
    "iqa": "IQA-PyTorch's NIMA (MobileNetV2)",
    "iqa-inception": "IQA-PyTorch's NIMA (InceptionResNetV2, its own choice)",
}


@dataclass(frozen=True)
class Program:
    """A loaded program that waits to be told how long to work.

    Attributes:
        name: as the table shows it.
        process: it.
    """

    name: str
    process: subprocess.Popen[str]

    def work(self, seconds: float) -> tuple[float, float]:
        """Score for so long; images per second, and milliseconds of CPU an image.

        Raises:
            LoadError, OSError: it has ended, or answers something else.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise LoadError(f"it ended with status {self.process.wait()}")
        try:
            answer = json.loads(line)
        except ValueError:
            raise LoadError(f"it answered {line[:200]!r}") from None
        images = answer["images"]
        return images / answer["seconds"], answer["cpu_seconds"] / images * 1000


@contextlib.contextmanager
def program(kind: str, setting: Setting) -> Iterator[Program]:
    """Start one of :data:`NAMES` and wait until it has scored once.

    Raises:
        RuntimeError: it did not start.
    """
    folder = setting.folder / "photos"
    if not folder.is_dir():
        folder.mkdir()
        for index, photo in enumerate(setting.photos):
            (folder / f"{index:03d}.jpg").write_bytes(photo)
    log = setting.folder / f"{kind}.log"
    command = [str(setting.python), "offline_app.py", kind, str(folder), str(setting.workers)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        with guarded(process.pid):
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                tail = " / ".join(log.read_text(errors="replace").splitlines()[-4:])
                raise RuntimeError(f"it did not start: {tail}")
            yield Program(NAMES[kind], process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
