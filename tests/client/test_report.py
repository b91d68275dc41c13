"""``nima report``: the page as people use it, in a real browser."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="nima report needs the extra report")
pytest.importorskip("typer", reason="nima report needs the extra report")

from browser import Browser, chromium

from nima_client.cli.main import main
from nima_client.library.files import write_rows
from nima_client.library.rows import Row
from nima_client.testing import fake_distribution, moments

HOSTILE = (
    '"><script>document.title="owned"</script>.jpg',
    "'onerror='document.title=1' x='.jpg",
    "</style><img src=x onerror=document.title='owned'>.jpg",
    "{{ 7*7 }} &amp; <b>.jpg",
    "right\u202egpj.exe",
)


def make_row(file: str, seed: int) -> Row:
    distribution = fake_distribution(str(seed).encode())
    mean, std = moments(distribution)
    return Row(file, mean, std, 10.0 * mean, distribution, "1", "checkpoint", "0" * 64)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, photo: Callable[..., bytes]) -> list[Row]:
    folder = tmp_path_factory.mktemp("photos")
    made = []
    for number, name in enumerate([f"IMG_{i}.jpg" for i in range(30)] + list(HOSTILE)):
        # A slash cannot be in a file name; results may still hold anything.
        path = folder / name.replace("/", "∕")
        path.write_bytes(photo(number * 7, size=(640, 480)))
        made.append(make_row(str(path), number))
    made.append(make_row(str(folder / "gone.jpg"), 99))
    return made


@pytest.fixture(scope="module")
def page(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_rows(rows, folder / "scores.jsonl", "jsonl")
    report(folder / "scores.jsonl", "-o", folder / "report.html", "--title", "Trip <1> & more")
    return folder / "report.html"


def report(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    return int(ended.value.code or 0)


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))


def test_the_page_holds_everything_and_runs_nothing_of_others(page: Path, rows: list[Row]) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Elements(text).tags
    cards = [a for tag, a in tags if tag == "button" and a.get("class") == "card"]
    assert len(cards) == len(rows)
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    sources = [a["src"] for tag, a in tags if tag == "img" and a.get("src")]
    assert len(sources) == len(rows) - 1  # one photo is gone
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"(href|src)=\"?(https?:)?//", text)
    means = [float(str(card["data-mean"])) for card in cards]
    assert means == sorted(means, reverse=True)
    shown = {card["data-name"] for card in cards}
    assert '"><script>document.title="owned"<∕script>.jpg' in shown
    assert "right\ufffdgpj.exe" in shown


def test_nearly_all_reference_photos_are_not_all(tmp_path: Path) -> None:
    rows = [replace(make_row("a.jpg", 1), percentile=99.7)]
    rows.append(replace(make_row("b.jpg", 2), percentile=0.4))
    write_rows(rows, tmp_path / "scores.jsonl", "jsonl")
    report(tmp_path / "scores.jsonl", "-o", tmp_path / "report.html")
    found = re.findall(r"beats ([\d.]+) %", (tmp_path / "report.html").read_text("utf-8"))
    assert sorted(found) == ["0.4", "99.7"]


def test_a_checkpoint_may_be_called_anything(tmp_path: Path) -> None:
    row = replace(make_row("a.jpg", 1), checkpoint="a\ud800\u202eb", checkpoint_sha256="\udfff")
    write_rows([row], tmp_path / "scores.jsonl", "jsonl")
    report(tmp_path / "scores.jsonl", "-o", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert 'sha256 \ufffd">a\ufffd\ufffdb<' in text


@pytest.fixture(scope="module")
def need_browser() -> None:
    if chromium() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture
def desktop(need_browser: None, page: Path) -> Iterator[Browser]:
    with Browser() as browser:
        browser.open(page)
        yield browser


SHOWN = "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.%s)"


def shown(browser: Browser, key: str = "name") -> list[str]:
    return list(browser.run(SHOWN % key))


def set_value(browser: Browser, element: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.getElementById('{element}'); e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_it_opens_offline_without_a_complaint(desktop: Browser, page: Path) -> None:
    assert desktop.requested() == [page.resolve().as_uri()]
    assert desktop.complaints() == []
    assert desktop.run("document.title") == "Trip <1> & more"
    loaded = "[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth > 0)"
    desktop.run(
        "document.querySelectorAll('.card').forEach(c => c.style.contentVisibility='visible')"
    )
    assert desktop.run(loaded)


def test_sorting_filtering_and_reset(desktop: Browser) -> None:
    best_first = [float(m) for m in shown(desktop, "mean")]
    set_value(desktop, "sort", "mean")
    assert [float(m) for m in shown(desktop, "mean")] == sorted(best_first)
    set_value(desktop, "sort", "-std")
    stds = [float(s) for s in shown(desktop, "std")]
    assert stds == sorted(stds, reverse=True)
    set_value(desktop, "sort", "name")
    set_value(desktop, "search", "img_2")
    assert shown(desktop) == ["IMG_2.jpg"] + [f"IMG_{i}.jpg" for i in range(20, 30)]
    assert desktop.run("document.getElementById('shown').textContent") == "11 shown"
    set_value(desktop, "search", "")
    set_value(desktop, "low", "5.5")
    kept = [float(m) for m in shown(desktop, "mean")]
    assert 0 < len(kept) < len(best_first)
    assert min(kept) >= 5.5
    set_value(desktop, "search", "no such name")
    assert shown(desktop) == []
    assert desktop.run("document.getElementById('nothing').hidden") is False
    desktop.run("document.getElementById('again').click()")
    desktop.run("new Promise(r => setTimeout(r, 50))")
    assert [float(m) for m in shown(desktop, "mean")] == best_first
    desktop.run(
        "[...document.querySelectorAll('.bin')].find(b => b.getAttribute('height') > 0)"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert 0 < len(shown(desktop)) < len(best_first)


def test_the_keyboard_is_enough(desktop: Browser, tmp_path: Path) -> None:
    focused = "document.activeElement.dataset.rank"
    for _ in range(40):  # Tab reaches the gallery
        desktop.press("Tab")
        if desktop.run("document.activeElement.className") == "card":
            break
    assert desktop.run(focused) == "1"
    desktop.press("ArrowRight")
    assert desktop.run(focused) == "2"
    desktop.press("ArrowDown")
    below = int(desktop.run(focused))
    assert below > 3
    desktop.press("Enter")
    assert desktop.run("document.getElementById('detail').open") is True
    assert desktop.run("document.querySelectorAll('#detail-ratings tr').length") == 10
    first = desktop.run("document.getElementById('detail-name').textContent")
    desktop.press("ArrowRight")
    assert desktop.run("document.getElementById('detail-name').textContent") != first
    desktop.screenshot(tmp_path / "detail.png")
    assert (tmp_path / "detail.png").stat().st_size > 10_000
    desktop.press("Escape")
    assert desktop.run("document.getElementById('detail').open") is False
    assert desktop.run(focused) == str(below + 1)
    desktop.press("End")
    assert int(desktop.run(focused)) == len(shown(desktop))


def test_the_arrow_keys_lead_back_from_the_last_photo_and_from_the_first(desktop: Browser) -> None:
    name = "document.getElementById('detail-name').textContent"
    names = shown(desktop)
    desktop.run(f"document.querySelectorAll('.card')[{len(names) - 2}].focus()")
    desktop.press("Enter")
    for key, expected in (("ArrowRight", -1), ("ArrowRight", -1), ("ArrowLeft", -2)):
        desktop.press(key)
        assert desktop.run(name) == names[expected]
    desktop.press("Escape")
    desktop.run("document.querySelectorAll('.card')[1].click()")
    desktop.run("document.getElementById('previous').focus()")
    for key, expected in (("Enter", 0), ("Enter", 0), ("ArrowRight", 1)):
        desktop.press(key)
        assert desktop.run(name) == names[expected]


def test_the_keyboard_leads_to_nothing_below_the_controls(desktop: Browser) -> None:
    top = "document.activeElement.getBoundingClientRect().top"
    covered = desktop.run("document.getElementById('controls').getBoundingClientRect().height")
    desktop.run("document.querySelector('.skip').click()")
    desktop.run("new Promise(r => setTimeout(r, 100))")
    assert desktop.run("document.querySelector('.card').getBoundingClientRect().top") >= covered
    desktop.run("document.querySelector('.card').focus()")
    desktop.press("End")
    while desktop.run("Number(document.activeElement.dataset.rank)") > 5:
        desktop.press("ArrowUp")
        assert desktop.run(top) >= covered


def test_an_umlaut_is_found_however_its_name_is_composed(
    need_browser: None, tmp_path: Path
) -> None:
    """Names from macOS are decomposed; people type composed letters."""
    write_rows([make_row("Mu\u0308ller.jpg", 1), make_row("b.jpg", 2)], tmp_path / "s.csv", "csv")
    assert report(tmp_path / "s.csv", "-o", tmp_path / "r.html") == 0
    with Browser() as browser:
        browser.open(tmp_path / "r.html")
        set_value(browser, "search", "m\u00fcll")
        assert shown(browser) == ["Mu\u0308ller.jpg"]


def test_hostile_names_stay_text(desktop: Browser) -> None:
    desktop.run("document.querySelectorAll('.card').forEach(c => c.click())")
    assert desktop.run("document.title") == "Trip <1> & more"
    assert desktop.run("document.querySelectorAll('script').length") == 1
    assert desktop.run("document.querySelectorAll('dialog b, main b').length") == 0
    assert desktop.complaints() == []


def test_it_fits_a_phone(need_browser: None, page: Path, tmp_path: Path) -> None:
    with Browser(360, 740, mobile=True) as phone:
        phone.open(page)
        assert phone.run("document.documentElement.scrollWidth") <= 360
        small = (
            "[...document.querySelectorAll('button, select, input')].filter(e => e.offsetParent && "
            "e.getBoundingClientRect().height < 40).map(e => e.outerHTML.slice(0, 60))"
        )
        assert phone.run(small) == []  # large enough for a thumb
        phone.run("document.querySelector('.card').click()")
        box = phone.run(
            "(() => { const b = document.getElementById('detail').getBoundingClientRect();"
            "return [b.left, b.right]; })()"
        )
        assert box[0] >= 0
        assert box[1] <= 360
        phone.screenshot(tmp_path / "phone.png")
        assert (tmp_path / "phone.png").stat().st_size > 5_000
        assert phone.complaints() == []


def test_photos_inside_archives_and_below_a_root(
    tmp_path: Path, photo: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.jpg").write_bytes(photo(1))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "0.jpg", "inside.jpg")
    rows = [make_row("shard.tar/inside.jpg", 1), make_row("0.jpg", 2), make_row("none.jpg", 3)]
    write_rows(rows, tmp_path / "scores.csv", "csv")
    assert report(tmp_path / "scores.csv", "-o", tmp_path / "r.html", "--root", tmp_path) == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count("data:image/jpeg") == 2
    assert "3 photos (1 not found" in " ".join(capsys.readouterr().err.split())
    assert report(tmp_path / "scores.csv", "-o", tmp_path / "r.html", "--limit", 1) == 0
    assert "1 of 3 photos" in (tmp_path / "r.html").read_text(encoding="utf-8")
    write_rows(rows[:1], tmp_path / "one.csv", "csv")
    assert report(tmp_path / "one.csv", "-o", tmp_path / "r.html", "--root", tmp_path) == 0
    assert re.search(r"\b1 photo\s", (tmp_path / "r.html").read_text(encoding="utf-8"))


def test_scores_of_one_name_in_two_files_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of two cameras, say, each scored from its own folder."""
    for name, seed in (("a", 1), ("b", 2)):
        rows = [make_row("IMG_1.jpg", seed), make_row(f"{name}.jpg", seed)]
        write_rows(rows, tmp_path / f"{name}.csv", "csv")
    files = (tmp_path / "a.csv", tmp_path / "b.csv")
    assert report(*files, "-o", tmp_path / "r.html") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "1 score replaced by later ones of the same names" in told
    assert "3 photos" in told
    assert report(files[0], "-o", tmp_path / "r.html") == 0
    assert "replaced" not in capsys.readouterr().err


def test_an_output_that_cannot_be_is_told_before_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nima_client.report.Thumbnails.make", None)
    scores = tmp_path / "scores.csv"
    write_rows([make_row("a.jpg", 1)], scores, "csv")
    before = scores.read_bytes()
    (tmp_path / "link.html").symlink_to(scores)
    for output, why in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "scores.csv" / "r.html", "scores.csv"),
        (tmp_path / "link.html", "would overwrite the scores"),
    ):
        assert report(scores, "-o", output) == 2
        assert why in " ".join(capsys.readouterr().err.split())
    assert scores.read_bytes() == before


def test_what_is_no_result_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "scores.jsonl"
    bad.write_text('{"file": "a.jpg", "mean": 5}\n')
    assert report(bad, "-o", tmp_path / "r.html") == 2
    assert "line 1" in capsys.readouterr().err
    assert report(tmp_path / "none.csv", "-o", tmp_path / "r.html") == 2
    assert report(tmp_path, "-o", tmp_path / "r.html") == 2  # of photos, perhaps
    assert "is a folder: score it first" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
    bad.write_text("")
    assert report(bad, "-o", tmp_path / "r.html") == 0
    assert "no scores" in (tmp_path / "r.html").read_text(encoding="utf-8")
