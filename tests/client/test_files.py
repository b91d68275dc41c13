"""Files that are replaced whole: links, modes, and what is no regular file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nima_client._files import atomic_file, remove_unfinished, write_atomic, write_together


def together(path: Path, data: bytes) -> None:
    write_together({path: data})


def as_text(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data.decode())


Write = Callable[[Path, bytes], None]
every_way = pytest.mark.parametrize("write", [write_atomic, together, as_text])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@every_way
def test_a_file_keeps_its_mode_and_a_new_one_gets_the_usual(
    tmp_path: Path, write: Write, umask: None
) -> None:
    path = tmp_path / "folder" / "scores"
    write(path, b"one")
    assert mode(path) == 0o640
    for kept in (0o600, 0o664, 0o755):
        path.chmod(kept)
        write(path, b"two")
        assert mode(path) == kept
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@every_way
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, write: Write) -> None:
    target = tmp_path / "disk" / "scores"
    target.parent.mkdir()
    target.write_bytes(b"old")
    target.chmod(0o600)
    link, second = tmp_path / "link", tmp_path / "second"
    link.symlink_to("disk/scores")
    second.symlink_to(link)
    before = target.stat().st_ino
    write(second, b"new")
    assert link.is_symlink()
    assert second.is_symlink()
    assert target.read_bytes() == b"new"
    assert mode(target) == 0o600
    assert target.stat().st_ino != before  # whole or not at all, as without a link
    assert list(target.parent.iterdir()) == [target]


def test_a_link_to_nothing_yet_makes_its_target(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("elsewhere/scores")
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "scores").read_bytes() == b"new"


@every_way
def test_a_pipe_is_written_to_and_stays(tmp_path: Path, write: Write) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # As /dev/stdout: a link that no path leads on from.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    link = tmp_path / "stdout"
    link.symlink_to(f"/proc/self/fd/{writer}")
    try:
        for path in (pipe, link):
            write(path, b"through")
            assert os.read(reader, 100) == b"through"
    finally:
        os.close(writer)
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@every_way
def test_a_device_is_written_to_and_stays(tmp_path: Path, write: Write) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        null.write_bytes(b"")
    except PermissionError:
        pytest.skip("this process may not make devices here")
    write(null, b"gone")
    assert stat.S_ISCHR(null.stat().st_mode)


@every_way
def test_where_nothing_may_be_written_the_error_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".scores.x7"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError, match=r"/scores'$"):
        write(tmp_path / "scores", b"x")


@every_way
def test_a_folder_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path, b"x")
    assert list(tmp_path.iterdir()) == []


def test_what_breaks_half_way_leaves_the_target_of_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "scores", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)

    def broken() -> None:
        with atomic_file(link) as file:
            file.write("new")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        broken()
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_parquet_and_failures_go_through_a_pipe(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import io

    import pyarrow.parquet as pq

    from nima_client.library.files import write_failures, write_rows
    from nima_client.library.rows import FailedRow, Row

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    row = Row("a.jpg", 5.0, 1.0, None, (0.1,) * 10)
    for write in (
        lambda: write_rows([row], pipe, "parquet"),
        lambda: write_failures([FailedRow("b.jpg", "EMPTY", "no bytes")], pipe),
    ):
        reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
        reader.start()
        write()
        reader.join(20)
    assert pq.read_table(io.BytesIO(got[0])).column("file").to_pylist() == ["a.jpg"]
    assert got[1].startswith(b'{"file": "b.jpg"')


@every_way
def test_the_new_name_is_on_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    path = tmp_path / "scores"
    path.write_bytes(b"old")
    flushed = []

    def fsync(descriptor: int, ordinary: Callable[[int], None] = os.fsync) -> None:
        ordinary(descriptor)
        flushed.append((os.fstat(descriptor).st_ino, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(path, b"new")
    assert flushed[-1] == (tmp_path.stat().st_ino, b"new")
    assert (path.stat().st_ino, b"old") in flushed[:-1]


def test_a_folder_that_cannot_be_flushed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "scores", b"new")
    assert (tmp_path / "scores").read_bytes() == b"new"


@every_way
def test_a_file_that_was_taken_away_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    path, ordinary, made = tmp_path / "scores", tempfile.mkstemp, []

    def mkstemp(**options: Any) -> tuple[int, str]:
        descriptor, name = ordinary(**options)
        made.append(name)
        if len(made) == 1:  # as another process may at this moment
            remove_unfinished(path)
            assert not os.path.exists(name)
        elif len(made) == 2:  # which now holds it, and is about to
            holder = os.open(name, os.O_RDONLY)
            fcntl.flock(holder, fcntl.LOCK_EX)
            held.callback(os.close, holder)
        return descriptor, name

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    with ExitStack() as held:
        write(path, b"whole")
    assert len(made) == 3
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


_HALF_WAY = """
import os, signal, sys
from pathlib import Path
from nima_client._files import atomic_file
with atomic_file(Path(sys.argv[1]), "wb") as file:
    file.write(b"half")
    file.flush()
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_had_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    command = [sys.executable, "-c", _HALF_WAY, str(graph)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as alive:
        for writer in (killed, alive):
            assert writer.stdout.readline()
        killed.kill()
        killed.wait(10)
        others = [tmp_path / ".model.onnx.kept", tmp_path / ".model.onnx.data.abcdefgh.partial"]
        for other in others:
            other.write_bytes(b"")
        assert len(list(tmp_path.iterdir())) == 4
        write_together({graph: b"whole"})
        assert len(list(tmp_path.iterdir())) == 4, "the graph, that of the living, and the others"
        alive.communicate(timeout=10)
        assert alive.returncode == 0
    assert sorted(tmp_path.iterdir()) == sorted([graph, *others])
    assert graph.read_bytes() == b"half"
