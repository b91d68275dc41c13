"""A disk that runs full half-way through an artefact: a clear error, and the previous one stays.

Where this process may mount, the disk is a small tmpfs that is really full; elsewhere a limit on
the size of a file stands in for it.
"""

from __future__ import annotations

import errno
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nima_build.checksums import check_checksums
from nima_build.cli.build import app as build_app
from nima_build.cli.export import app as export_app
from nima_build.export import export_to_repository
from nima_build.tensorrt_api import EngineError, load_runtime
from nima_client._files import write_atomic, write_together


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, temporary ones included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


class Disk:
    """A folder on a file system of its own, which can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave: int) -> None:
        """Leave so many bytes."""
        with self._ballast.open("wb", buffering=0) as file:
            file.write(b"\0" * (shutil.disk_usage(self.folder).free - leave))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(options, capture_output=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"this process may not mount a tmpfs: {done.stderr.decode().strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", str(folder)], timeout=20, check=True)


def test_files_that_belong_together_are_replaced_together(disk: Disk) -> None:
    first, second = disk.folder / "first", disk.folder / "second"
    write_together({first: b"old", second: b"old"})
    disk.fill(leave=1 << 20)
    before = content(disk.folder)
    with pytest.raises(OSError, match="No space left") as caught:
        write_together({first: b"new", second: b"n" * (2 << 20)})
    assert caught.value.errno == errno.ENOSPC
    assert content(disk.folder) == before


def test_export_into_a_full_repository(disk: Disk, repository: Path, checkpoint: Path) -> None:
    models = Path(shutil.copytree(repository, disk.folder / "models"))
    # Room for the graph, and for half of what follows it.
    disk.fill(leave=(models / "nima_network" / "1" / "model.onnx").stat().st_size + 4096)
    before = content(disk.folder)
    with pytest.raises(OSError, match="No space left"):
        export_to_repository(checkpoint, models)
    assert content(disk.folder) == before
    check_checksums(models)
    disk.fill(leave=1 << 20)
    before = content(disk.folder)
    result = CliRunner().invoke(export_app, [str(checkpoint), "-o", str(models / "nima_network/1")])
    assert result.exit_code == 1
    named = rf"nima export: {models}/nima_network/1/\S+: No space left on device"
    assert re.match(named, result.output), result.output
    assert result.output.count("\n") == 1
    assert content(disk.folder) == before


def test_engine_onto_a_full_disk(disk: Disk, exported: Path) -> None:
    try:
        load_runtime("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))
    plan = disk.folder / "model.plan"
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", "8.9"]
    arguments += ["--onnx", str(exported / "model.onnx"), "-o", str(plan)]
    first = CliRunner().invoke(build_app, arguments)
    assert first.exit_code == 0, first.output
    disk.fill(leave=1 << 20)
    before = content(disk.folder)
    again = CliRunner().invoke(build_app, [*arguments, "--force"])
    assert again.exit_code == 1
    assert f"nima build: {plan}: No space left on device" in again.output
    assert content(disk.folder) == before
    assert "up to date" in CliRunner().invoke(build_app, arguments).output


def test_a_write_that_stops_half_way_without_a_mount(tmp_path: Path) -> None:
    path = tmp_path / "artefact"
    write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous: Any = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, b"n" * (2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert content(tmp_path) == {"artefact": b"old"}
