"""What the commands put on a terminal, whatever photos and checkpoints are called."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="the commands need the extra cli")

from rich.console import Console

from nima_client.cli._job import Format, Job, say
from nima_client.cli._progress import Tracker, tracking
from nima_client.cli._table import print_scores
from nima_client.cli.main import main
from nima_client.library.files import write_rows
from nima_client.library.rows import FailedRow, Row
from nima_client.library.select import Selection
from nima_client.library.sources import Sources
from nima_client.library.text import printable
from nima_client.results import percentile_text

LONG = "2024-06-01_family_at_the_beach_of_San_Sebastian_evening_light_edited_final_2.jpg"


def row(file: str, mean: float = 4.21, checkpoint: str = "nima") -> Row:
    return Row(file, mean, 1.33, 57.0, (0.1,) * 10, "1", checkpoint, "a" * 64)


def terminal(width: int) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=True, no_color=True, color_system=None
    )


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [120, 80, 60, 40])
@pytest.mark.parametrize(
    "file",
    [LONG, "names with blanks " * 12 + ".jpg", "漢" * 80 + ".jpg"],
    ids=["one word", "blanks", "wide letters"],
)
def test_a_long_name_leaves_the_scores_on_the_screen(file: str, width: int) -> None:
    console = terminal(width)
    print_scores([row(file), row("b.jpg")], console)
    lines = [line for line in shown(console).splitlines() if "4.21" in line]
    assert len(lines) == 2  # each name in one line
    assert all("1.33" in line and "57" in line for line in lines)
    assert "…" in lines[0] or width == 120


def test_a_terminal_too_narrow_for_the_histogram_gets_a_whole_table_without_it() -> None:
    for width, whole in ((40, False), (80, True)):
        console = terminal(width)
        print_scores([row("a.jpg"), row("b.jpg")], console)
        lines = [line for line in shown(console).splitlines() if "4.21" in line]
        assert all(line.endswith("│") and len(line) <= width for line in lines)
        assert all(("█" in line) is whole for line in lines)
        assert ("ratings" in shown(console)) is whole


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_escapes_of_foreign_letters_keep_the_columns(encoding: str) -> None:
    """What the encoding has no letter for comes out as escapes, which are longer."""
    for width in (60, 400):
        console = narrow_encoding(encoding, width)
        print_scores([row(name) for name in ("Köln.jpg", "写真.jpg", "🎉" * 30, LONG)], console)
        text = written(console)
        assert len({len(line) for line in text.splitlines() if line[:1] in "|+"}) == 1
        assert "\\u5199\\u771f.jpg" in text
        assert ("..." in text) is (width == 60)
        assert "\\u2026" not in text


def narrow_encoding(encoding: str, width: int) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    return Console(file=file, width=width, force_terminal=True, no_color=True, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.TextIOWrapper)
    console.file.flush()
    assert isinstance(console.file.buffer, io.BytesIO)
    return console.file.buffer.getvalue().decode(console.encoding)


def test_a_dumb_terminal_and_a_pipe_get_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    for console in (terminal(80), Console(file=io.StringIO(), width=80)):
        with tracking(console, 3) as track:
            assert list(track(range(3))) == [0, 1, 2]
        assert shown(console) == ""


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_a_narrow_terminal_cuts_nothing_from_the_bar(width: int) -> None:
    console = terminal(width)
    with tracking(console, 120_000, done=119_990) as track:
        assert len(list(track(range(10)))) == 10
    text = shown(console)
    assert "120000/120000" in text
    assert "…" not in text
    assert ("photos/s" in text) is (width >= 60)


def run(monkeypatch: pytest.MonkeyPatch, console: Console, arguments: Sequence[object]) -> str:
    monkeypatch.setattr("nima_client.cli.compare.open_console", lambda **_: console)
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 0
    return written(console) if isinstance(console.file, io.TextIOWrapper) else shown(console)


def test_compare_shows_changes_and_checkpoints_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("scipy", reason="nima compare needs the extra report")
    names = [LONG, "b.jpg"]
    write_rows([row(n, 4.0, "nima[v2]") for n in names], tmp_path / "a.csv", "csv")
    write_rows([row(n, 5.5, "nima[/v3]") for n in names], tmp_path / "b.csv", "csv")
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    text = run(monkeypatch, terminal(80), ["compare", *files])
    assert sum("+1.50" in line and "5.50" in line for line in text.splitlines()) == 2
    assert "nima[v2] (aaaaaaaaaaaa)" in text
    assert "nima[/v3] (aaaaaaaaaaaa)" in text
    assert "0.000" in text
    text = run(monkeypatch, terminal(44), ["compare", *files])
    assert sum(line.rstrip().endswith("+1.50") for line in text.splitlines()) == 2


def test_the_changes_keep_their_columns_in_another_encoding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("scipy", reason="nima compare needs the extra report")
    for name, mean in (("a.csv", 4.0), ("b.csv", 5.5)):
        write_rows([row(n, mean) for n in ("写真.jpg", "b.jpg", "🎉" * 30)], tmp_path / name, "csv")
    console = narrow_encoding("ascii", 80)
    text = run(monkeypatch, console, ["compare", tmp_path / "a.csv", tmp_path / "b.csv"])
    assert len({len(line) for line in text.splitlines() if "+1.50 |" in line}) == 1


def test_a_line_says_a_name_as_it_is() -> None:
    console = terminal(80)
    say(console, "a:x:[b]/1:100:2.jpg: UNDECODABLE")
    assert shown(console) == "a:x:[b]/1:100:2.jpg: UNDECODABLE\n"


def test_the_last_line_of_a_run_is_one_line_in_a_log() -> None:
    console = Console(file=io.StringIO(), width=80)
    failed = FailedRow("c.jpg", "EMPTY", "no bytes")
    job = Job(
        sources=Sources(()), selection=Selection(), form=Format.table, output=None,
        failures_file=None, resume=False, xmp=False, placement=None, errors=console,
        failures=[failed] * 1000,
    )  # fmt: skip
    track = Tracker(None, None, 0)
    track.count = 1_000_000
    job._finish(track, earlier=1_000_000)
    (line,) = shown(console).splitlines()
    assert line.endswith("1000000 were there already, 1000 without a score")


def test_printable_keeps_letters_spaces_and_joined_emoji() -> None:
    kept = "Screenshot 1.00\u202fPM 写真\u3000一 a\u00a0b 👨\u200d👩\u200d👧 می\u200cخواهم é.jpg"
    assert printable(kept) == kept
    commands = "\x1b\x07\n\r\t\u202e\u2066\u200f\u2028\u2029\ufeff\ue000"
    assert printable(commands) == "\N{REPLACEMENT CHARACTER}" * len(commands)


def test_percentiles_near_the_ends_are_not_rounded_to_none_or_all() -> None:
    given = (0.0, 0.04, 0.4, 0.96, 1.0, 62.3, 98.6, 99.0, 99.5, 99.97, 100.0)
    texts = ("0", "0.1", "0.4", "1.0", "1", "62", "99", "99", "99.5", "99.9", "100")
    assert tuple(map(percentile_text, given)) == texts
    console = terminal(80)
    print_scores([Row("a.jpg", 6.1, 1.0, 99.7, (0.1,) * 10)], console)
    assert " 99.7 " in shown(console)
