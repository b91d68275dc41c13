"""A full disk under the results file, and a wall clock that jumps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import _faketime
import pytest
from _load import Account, drive, expected_scores, photos, supervised

from nima_build.doctor import Target, _operations
from nima_build.server import ServerOptions
from nima_client import NimaClient

NIMA = [sys.executable, "-m", "nima_client.cli.main"]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(120):
        data = photos()[number % len(photos())]
        (folder / f"photo{number:03}.img.jpg").write_bytes(data)
    return folder


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a small tmpfs needs root and unshare",
)
def test_disk_full_while_writing_results(shared_server, album: Path, tmp_path: Path) -> None:
    """The command ends with the reason; with room again, --resume gives every photo one row."""
    disk, done = tmp_path / "disk", tmp_path / "done"
    disk.mkdir()
    done.mkdir()
    score = [*NIMA, "score", str(album), "--url", shared_server.grpc_url, "-f", "jsonl",
             "-o", str(disk / "scores.jsonl")]  # fmt: skip
    script = f"""
        mount -t tmpfs -o size=64k tmpfs {disk} || exit 77
        head -c 45056 /dev/zero > {disk}/ballast
        "$@"; echo "first $?"
        rm {disk}/ballast
        mount -o remount,size=4m {disk}
        "$@" --resume; echo "second $?"
        cp {disk}/scores.jsonl {done}/
    """
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *score],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if ended.returncode == 77:
        pytest.skip("no tmpfs may be mounted here")
    print(ended.stdout, ended.stderr[-400:])
    statuses = dict(
        line.split() for line in ended.stdout.splitlines() if line[:5] in ("first", "secon")
    )
    assert statuses["first"] != "0"
    full = rf"nima score: {disk}/scores\.jsonl(\.journal)?: No space left on device"
    assert re.search(full, ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert statuses["second"] == "0"
    rows = _rows(done / "scores.jsonl")
    assert len(rows) == 120
    assert len({str(row.get("file") or row.get("source")) for row in rows}) == 120


@pytest.mark.skipif(_faketime.LIBRARY is None, reason="libfaketime is not installed")
def test_clock_jumps_change_nothing(shared_server, tmp_path: Path) -> None:
    """The client's wall clock jumps ahead by a day and back by two while it scores."""
    expected = expected_scores(shared_server.grpc_url)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    program = f"""
import itertools, json, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from _load import at, drive
from nima_client import NimaClient
def jump(offset):
    with open({str(clock)!r}, "w") as file:
        file.write(offset)
began = time.time()
def during(done):
    if done == 40: jump("+86400")
    if done == 80: jump("-86400")
with NimaClient({shared_server.grpc_url!r}, timeout=100) as client:
    account = drive(client, 120, during)
print(json.dumps([time.time() - began, account.answers]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=_faketime.environment(clock), capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-600:]
    passed, answers = json.loads(ended.stdout)
    assert passed < -3600, "the clock did not jump"
    account = Account()
    for index, got in answers.items():
        account.answers[int(index)] += [tuple(a) if isinstance(a, list) else a for a in got]
    assert account.check(120, expected) == {"scored": 120}


@pytest.mark.skipif(_faketime.LIBRARY is None, reason="libfaketime is not installed")
def test_a_server_whose_clock_jumps(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock of tritonserver and its stubs jumps a day ahead and two back under load."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    with monkeypatch.context() as patch:
        for name, value in _faketime.environment(clock).items():
            patch.setenv(name, value)
        with supervised(ServerOptions(model_repository=repository, instances=2)) as (
            server,
            supervisor,
            lines,
        ):
            expected = expected_scores(server.grpc_url)

            def jump(done: int) -> None:
                if done == 40:
                    clock.write_text("+86400")
                if done == 120:
                    clock.write_text("-86400")

            with NimaClient(server.grpc_url, timeout=100) as client:
                account = drive(client, 240, jump)
            finding = _operations.clock(Target(server.grpc_url), NimaClient(server.grpc_url))
    print(f"restarts: {supervisor.restarts} {lines}")
    assert account.check(240, expected) == {"scored": 240}
    # That the jumps took place, `nima doctor` tells.
    assert finding.status == "warning"
    assert "the server's clock was set back" in finding.detail
