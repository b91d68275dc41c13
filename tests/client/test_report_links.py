"""``nima report``: links to the photos' files, wherever these and the page are."""

from __future__ import annotations

import base64
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="nima report needs the extra report")
pytest.importorskip("typer", reason="nima report needs the extra report")

from browser import Browser

from nima_client._names import display_name
from nima_client.cli.main import main
from nima_client.library.files import write_rows
from nima_client.library.rows import Row
from nima_client.report.links import link_to

Photo = Callable[..., bytes]

NAMES = (
    "a b.jpg", "it's.jpg", 'say "x".jpg', "no #1.jpg", "100% me.jpg", "50%20off.jpg", "who?.jpg",
    "\N{SUNRISE}.jpg", "<b>&amp;.jpg", "semi;colon.jpg", "back\\slash.jpg", "new\nline.jpg",
    "javascript:alert(1).jpg", "[1]{{7*7}}.jpg", "right\u202egpj.exe.jpg", "http:/x.jpg",
    "x" * 240 + ".jpg", os.fsdecode(b"caf\xe9.jpg"),
)  # fmt: skip
HREF = re.compile(r'<a class="open" href="([^"]*)"')


def row(file: str, rating: int = 5) -> Row:
    return Row(file, float(rating), 0.0, None, tuple(float(r == rating) for r in range(1, 11)))


def report(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    assert not ended.value.code


def hrefs(page: Path) -> list[str]:
    return HREF.findall(page.read_text("utf-8"))


@pytest.fixture
def album(tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with a photo in ``trip/``, and its scores."""
    home = tmp_path / "album #1"
    (home / "trip").mkdir(parents=True)
    (home / "trip" / "a.jpg").write_bytes(photo(1, size=(64, 48)))
    write_rows([row("trip/a.jpg")], home / "s.csv", "csv")
    monkeypatch.chdir(home)
    return home


def test_photos_below_the_page_are_linked_so_that_they_may_move_with_it(album: Path) -> None:
    for page, expected in (
        ("r.html", "trip/a.jpg"),
        ("trip/r.html", "a.jpg"),
        ("trip/../r.html", "trip/a.jpg"),
        (album / "r.html", "trip/a.jpg"),
        ("pages/r.html", (album / "trip" / "a.jpg").as_uri()),
    ):
        report("s.csv", "-o", page)
        assert hrefs(Path(page)) == [expected]
    assert "%231/" in (album / "trip" / "a.jpg").as_uri()


def test_a_page_whose_place_is_not_known_names_whole_paths(album: Path) -> None:
    expected = [(album / "trip" / "a.jpg").as_uri()]
    (album / "elsewhere").mkdir()
    (album / "elsewhere" / "link.html").symlink_to("../r.html")
    report("s.csv", "-o", "elsewhere/link.html")  # opened there, or as r.html
    assert hrefs(album / "r.html") == expected
    os.mkfifo(album / "pipe")
    reader = os.open(album / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    report("s.csv", "-o", "pipe")
    assert HREF.findall(os.read(reader, 1 << 20).decode()) == expected
    os.close(reader)


def test_links_among_folders_lead_nobody_astray(album: Path, tmp_path: Path) -> None:
    """``link/..`` is the folder above the one that the link leads to."""
    (tmp_path / "link").symlink_to(album / "trip")
    write_rows([row(f"{tmp_path}/link/a.jpg")], album / "s.csv", "csv")
    for page, expected in (
        (tmp_path / "r.html", "link/a.jpg"),
        (tmp_path / "link" / "r.html", "a.jpg"),
        (album / "trip" / "r.html", "a.jpg"),
        (tmp_path / "link" / ".." / "r.html", "trip/a.jpg"),
    ):
        report("s.csv", "-o", page)
        assert hrefs(page) == [expected]
    assert link_to(tmp_path / "link" / ".." / "a.jpg", tmp_path) == "album%20%231/a.jpg"


def test_what_has_no_file_has_no_link(album: Path, tmp_path: Path, photo: Photo) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add("trip/a.jpg", "inside.jpg")
    names = (
        "shard.tar/inside.jpg",
        "gone.jpg",
        "s3://bucket/a.jpg",
        "\ud800",
        "",
        "a\0",
        "x" * 999,
    )
    write_rows([row(name) for name in names], album / "s.jsonl", "jsonl")
    report("s.jsonl", "-o", "r.html", "--root", tmp_path)
    text = (album / "r.html").read_text("utf-8")
    assert text.count("data:image/jpeg") == 1
    assert hrefs(album / "r.html") == []
    assert "Open leads to" not in text


@pytest.fixture
def page(album: Path, photo: Photo) -> Path:
    """A page in a folder of awkward names, one photo below of which is in no file."""
    rows = []
    for number, name in enumerate(NAMES):
        path = album / "odd 100%" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number * 5, size=(64, 48)))
        rows.append(row(display_name(path.relative_to(album)), 9 - number % 8))
    rows.append(row("gone.jpg", 1))
    write_rows(rows, album / "s.csv", "csv")
    report("s.csv", "-o", "r.html")
    return album / "r.html"


def content(browser: Browser, address: str) -> bytes:
    """What the browser finds there."""
    assert "errorText" not in browser.call("Page.navigate", url=address)
    while browser.run("document.readyState") != "complete":
        pass
    frame = browser.call("Page.getFrameTree")["frameTree"]["frame"]
    found = browser.call("Page.getResourceContent", frameId=frame["id"], url=frame["url"])
    return base64.b64decode(found["content"])


def test_every_link_opens_its_photo_also_where_all_were_moved_to(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    moved = page.parent.rename(tmp_path / "moved?")
    browser.open(moved / "r.html")
    links = browser.run("[...document.querySelectorAll('.open')].map((a) => a.href)")
    found = {content(browser, link) for link in links}
    assert len(links) == len(NAMES)
    assert found == {(moved / "odd 100%" / name).read_bytes() for name in NAMES}


def test_the_keyboard_leads_to_the_links_and_on_from_them(browser: Browser, page: Path) -> None:
    browser.open(page)
    here = "document.activeElement.getAttribute('href')"
    first, second = hrefs(page)[:2]
    browser.run("document.querySelector('.card').focus()")
    browser.press("Tab")
    assert browser.run(here) == first
    assert browser.run("document.activeElement.matches(':focus-visible')") is True
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("ArrowRight")
    browser.press("Tab")
    assert browser.run(here) == second
    browser.run("document.querySelectorAll('.card')[1].click()")
    for _ in range(9):
        browser.press("Tab")
        if browser.run("document.activeElement.id") == "detail-open":
            break
    assert browser.run(here) == second
    assert browser.run("document.getElementById('detail-picture').getAttribute('href')") == second
    browser.press("ArrowLeft")
    assert browser.run(here) == first


def test_the_controls_cover_no_link_that_has_the_focus(browser: Browser, page: Path) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=1000, height=400, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    browser.open(page)
    covered = browser.run("document.getElementById('controls').getBoundingClientRect().height")
    link = f"document.querySelectorAll('.open')[{len(NAMES) // 2}]"
    browser.run(f"window.scrollBy(0, {link}.getBoundingClientRect().top - 10)")
    assert browser.run(f"{link}.getBoundingClientRect().top") < covered
    browser.run(f"{link}.focus()")
    assert browser.run(f"{link}.getBoundingClientRect().top") >= covered


def test_a_photo_without_a_link_keeps_the_arrow_keys(browser: Browser, page: Path) -> None:
    browser.open(page)
    last = f"document.querySelectorAll('.card')[{len(NAMES) - 1}]"
    browser.run(f"{last}.click()")
    browser.run("document.getElementById('detail-open').focus()")
    browser.press("ArrowRight")
    name = "document.getElementById('detail-name').textContent"
    assert browser.run(name) == "gone.jpg"
    assert browser.run("document.querySelectorAll('#detail [href]').length") == 0
    assert browser.run("document.getElementById('detail-open').checkVisibility()") is False
    browser.press("ArrowLeft")
    assert browser.run(f"{name} === {last}.dataset.name") is True


def test_a_link_says_what_it_opens_and_is_large_enough(browser: Browser, page: Path) -> None:
    browser.open(page)
    heard = [
        node["name"]["value"]
        for node in browser.call("Accessibility.getFullAXTree")["nodes"]
        if not node["ignored"] and node["role"]["value"] == "link"
    ]
    assert "Open a b.jpg in a new tab" in heard
    size = (
        "(() => { const style = getComputedStyle(document.querySelector('.open'), '::after');"
        "return [parseFloat(style.width), parseFloat(style.height)]; })()"
    )
    assert min(browser.run(size)) >= 40
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    assert browser.run("document.querySelector('.open').checkVisibility()") is True


def test_on_paper_a_link_is_not_seen_but_leads_from_the_whole_card(
    browser: Browser, page: Path
) -> None:
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.open(page)
    box = "(() => {{ const b = document.querySelector('{}').getBoundingClientRect();"
    box += "return [b.left, b.top, b.right, b.bottom]; }})()"
    assert browser.run(box.format(".open")) == browser.run(box.format(".card"))
    style = "getComputedStyle(document.querySelector('.open'))"
    assert browser.run(f"[{style}.color, {style}.backgroundColor]") == ["rgba(0, 0, 0, 0)"] * 2
