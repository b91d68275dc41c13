"""File names are data: to the shell, to HTML, to JSON and to a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from _corpus import seeds

NIMA = [sys.executable, "-m", "nima_client.cli.main"]
NAMES = (
    "$(touch pwned).jpg",
    "`touch pwned`.jpg",
    "; touch pwned ;.jpg",
    "-rf.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "<script>alert(1)<!--.jpg",
    "'\"&amp;.jpg",
    "line\nbreak.jpg",
    "\x1b[31mred\x1b[0m.jpg",
    "%s%n{0}${x}.jpg",
    "Ünïcödé ☃ 漢字.jpg",
    "\u202egpj.exe.jpg",
)


def test_hostile_names_are_scored_and_reported_as_text(shared_server, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    for name in NAMES:
        (album / name).write_bytes(seeds("JPEG")[0])
    (album / "bad\x1b[31m<b>.jpg").write_bytes(b"no photo")
    results = tmp_path / "scores.jsonl"
    ended = subprocess.run(
        [*NIMA, "score", str(album), "--url", shared_server.grpc_url, "-f", "jsonl",
         "-o", str(results)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "\x1b[31m" not in ended.stderr, "a file name reached the terminal as a command"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == len(NAMES)
    told = json.dumps(rows)
    for name in NAMES:
        assert json.dumps(name)[1:-1] in told
    page = tmp_path / "page.html"
    report = subprocess.run(
        [*NIMA, "report", str(results), "-o", str(page)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert report.returncode == 0, report.stderr
    html = page.read_text()
    assert "<img src=x" not in html
    assert "<script>alert(1)" not in html
    assert not list(tmp_path.rglob("pwned"))
