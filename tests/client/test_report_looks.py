"""``nima report``: what people see who see less, print the page, or run no script."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="nima report needs the extra report")
pytest.importorskip("typer", reason="nima report needs the extra report")

from browser import Browser

from nima_client.library.rows import Row
from nima_client.report import ReportOptions, Thumbnails, build_page
from nima_client.testing import fake_distribution, moments

# Contrast of WCAG 2.2 (1.4.3 and 1.4.11) between what is painted: [element, ratio] below a limit.
CONTRAST = """
(() => {
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const back = (e) => {
    if (!e) return [255, 255, 255];
    const own = parse(getComputedStyle(e).backgroundColor);
    if (own[3] === 1) return own.slice(0, 3);
    // What is over a photo may be over a white one.
    return over(own, e.matches(".rank, .open") ? [255, 255, 255] : back(e.parentElement));
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const name = (e) => `${e.tagName} ${e.className.baseVal ?? e.className} ${e.id}`;
  const low = [];
  let seen = 0;
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || e.disabled) continue;
    const style = getComputedStyle(e);
    if ([...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.tagName !== "OPTION") {
      seen += 1;
      const found = ratio(over(parse(style.color), back(e)), back(e));
      if (found < 4.5) low.push([name(e), found]);
    }
    if (e.placeholder) {
      const hint = getComputedStyle(e, "::placeholder");
      const colour = parse(hint.color);
      colour[3] *= Number(hint.opacity);
      if (ratio(over(colour, back(e)), back(e)) < 4.5) low.push(["placeholder", 0]);
    }
    if (e.matches("input, select, button:not(.card)")) {
      seen += 1;
      const found = ratio(parse(style.borderTopColor).slice(0, 3), back(e.parentElement));
      if (found < 3) low.push([name(e) + " border", found]);
    }
    if (e.matches(".bin")) {
      const found = ratio(parse(style.fill).slice(0, 3), back(e.parentElement.parentElement));
      if (found < 3) low.push([name(e), found]);
    }
  }
  return [seen, low];
})()
"""  # noqa: E501  (a program in another language)


def make_page(rows: list[Row], root: Path) -> str:
    return build_page(rows, ReportOptions(), Thumbnails(64, root))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, photo: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("looks")
    (folder / "a.jpg").write_bytes(photo(1, size=(64, 48)))
    distribution = fake_distribution(b"1")
    mean, std = moments(distribution)
    row = Row("a.jpg", mean, std, 62.0, distribution, "1", "checkpoint", "0" * 64)
    # A half that is exact in binary: what rounds it up says 4.13, what rounds to even 4.12.
    rows = [row, replace(row, file="gone.jpg", mean=4.125, std=1.625)]
    (folder / "page.html").write_text(make_page(rows, folder), "utf-8")
    return folder / "page.html"


def look(browser: Browser, scheme: str, media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", media=media, features=features)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_controls_stand_out(browser: Browser, page: Path, scheme: str) -> None:
    look(browser, scheme)
    browser.open(page)
    seen, low = browser.run(CONTRAST)
    assert seen > 25
    assert low == []
    browser.run("document.querySelector('.card').click()")
    assert browser.run("document.getElementById('detail').open") is True
    assert browser.run(CONTRAST)[1] == []


def test_on_paper_text_is_dark_and_a_rank_keeps_its_ground(browser: Browser, page: Path) -> None:
    """Printers leave grounds out: letters for a dark one would be pale on white."""
    look(browser, "dark", "print")
    browser.open(page)
    ink = browser.run("getComputedStyle(document.querySelector('h1')).color")
    assert all(int(part) < 64 for part in re.findall(r"\d+", ink))
    rank = "getComputedStyle(document.querySelector('.rank')).printColorAdjust"
    assert browser.run(rank) == "exact"


@pytest.mark.parametrize("width", [320, 375, 768, 1400])
def test_the_numbers_below_the_histogram_stand_where_they_belong(
    browser: Browser, page: Path, width: int
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.open(page)
    places = browser.run(
        "(() => { const box = document.querySelector('.overview svg').getBoundingClientRect();"
        "return [...document.querySelectorAll('.axis span')].map((span) => {"
        "const range = document.createRange(); range.selectNodeContents(span);"
        "const text = range.getBoundingClientRect();"
        "return 1 + 9 * ((text.left + text.right) / 2 - box.left) / box.width; }); })()"
    )
    # Those at the ends are inside: only their edges can be right.
    assert places[1:-1] == pytest.approx(range(2, 10), abs=0.02)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_without_script_nothing_pretends_to_work(browser: Browser, page: Path) -> None:
    visible = "document.querySelector('{}')?.checkVisibility() ?? false"
    browser.open(page)
    assert browser.run(visible.format("#controls")) is True
    assert browser.run(visible.format(".no-script")) is False
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    assert browser.run(visible.format("#controls")) is False
    assert browser.run(visible.format(".no-script")) is True
    assert browser.run("document.querySelectorAll('.card').length") == 2
    assert browser.complaints() == []


def test_one_photo_has_the_same_figures_everywhere(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('.card[data-mean=\"4.125\"]').click()")
    card = browser.run("document.querySelector('.card[data-mean=\"4.125\"] .score').textContent")
    detail = browser.run("document.querySelector('#detail .big').textContent")
    assert " ".join(card.split()) == " ".join(detail.split()) == "4.12 ± 1.62"


def test_a_bar_is_not_read_out_as_a_share_of_its_own(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('.card').click()")
    heard = [
        node["role"]["value"]
        for node in browser.call("Accessibility.getFullAXTree")["nodes"]
        if not node["ignored"]
    ]
    assert heard.count("row") == 11
    assert "meter" not in heard


def test_one_photo_among_thousands_is_seen_in_the_histogram(tmp_path: Path) -> None:
    distribution = fake_distribution(b"1")
    rows = [Row(f"{n}.jpg", 4.05, 1.0, None, distribution) for n in range(1000)]
    rows.append(Row("best.jpg", 8.05, 1.0, None, distribution))
    text = make_page(rows, tmp_path)
    bins = re.findall(r'<rect class="bin"[^>]* y="([\d.]+)"[^>]* height="([\d.]+)".*: (\d+)<', text)
    heights = {int(count): (float(y), float(height)) for y, height, count in bins}
    assert heights == {0: (100.0, 0.0), 1: (98.0, 2.0), 1000: (0.0, 100.0)}
