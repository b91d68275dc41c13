"""Self-contained HTML pages: one template, no outside reference, everything escaped by jinja2."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from nima_client._files import write_atomic
from nima_client.preprocess import PreprocessSpec, decode

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { --ink: #1c2128; --soft: #57606a; --line: #d8dee4; --ground: #f6f8fa; --blue: #0969da }
* { box-sizing: border-box }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--ground) }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem }
header { padding-top: 2rem } h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem }
h2 { font-size: 1.15rem; margin: 0 0 .6rem }
header p, section > p { color: var(--soft); margin: 0 0 .8rem; max-width: 60rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: 13px; margin: .4rem 0 1rem }
a { color: var(--blue); text-decoration: none } a:hover { text-decoration: underline }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 1.1rem 1.25rem; margin: 0 0 1.1rem }
.body { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; align-items: flex-start }
.table { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { padding: .28rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th { color: var(--soft); font-weight: 600; vertical-align: bottom }
tbody tr:hover { background: var(--ground) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem 1.6rem; align-items: flex-end;
  flex: 1 1 26rem }
figure { margin: 0; max-width: 100% } figure svg { max-width: 100%; height: auto; display: block }
figure.photo { width: 220px } figure.photo svg { width: 100% }
img { display: block; max-width: 100%; border-radius: 4px; margin-bottom: .3rem }
figcaption { font-size: 12px; color: var(--soft); max-width: 20rem; overflow-wrap: anywhere }
footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem 2rem; color: var(--soft);
  font-size: 13px }
@media print { body { background: #fff } section { break-inside: avoid } nav { display: none } }
</style></head><body>
<header><h1>{{ title }}</h1><p>{{ note }}</p>
<nav>{% for section in sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>
{% endfor %}</nav></header><main>
{% for section in sections %}<section id="s{{ loop.index }}"><h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}<div class="body">
{% if section.rows %}<div class="table"><table><thead><tr>{% for name in section.columns %}
<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.rows %}<tr>
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if section.figures %}<div class="figures">{% for item in section.figures %}
<figure{% if item.image %} class="photo"{% endif %}>
{% if item.image %}<img alt="{{ item.caption }}" src="{{ item.image }}">
{% endif %}
{{ item.svg }}<figcaption>{{ item.caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
</div></section>
{% endfor %}</main><footer>{{ footer }}</footer></body></html>
"""


@dataclass(frozen=True)
class Picture:
    """One figure: an inline SVG and/or a thumbnail, with a caption."""

    caption: str
    svg: Markup = field(default_factory=Markup)
    image: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with text, a table and figures, each optional."""

    title: str
    text: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)


def plot(caption: str, svg: str) -> Picture:
    """A figure from the SVG of :mod:`nima_training.plots`, which is trusted as markup."""
    return Picture(caption, Markup(svg))


def thumbnail(path: Path, side: int = 220) -> str:
    """A data URI of the photo, at most ``side`` pixels a side; empty if it cannot be read."""
    try:
        image = decode(path.read_bytes(), PreprocessSpec(resize_size=256, crop_size=224))
    except (OSError, ValueError):
        return ""
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    return data_uri(image)


def side_by_side(first: Image.Image, second: Image.Image, width: int = 220) -> str:
    """A data URI of two pictures of one size beside each other, ``width`` pixels in all."""
    size = (width // 2 - 1, max(1, round(first.height * (width // 2 - 1) / first.width)))
    canvas = Image.new("RGB", (width, size[1]), "white")
    canvas.paste(first.resize(size, Image.Resampling.BILINEAR), (0, 0))
    canvas.paste(second.resize(size, Image.Resampling.BILINEAR), (width - size[0], 0))
    return data_uri(canvas)


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG inside the page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(
    path: Path, title: str, note: str, sections: list[Section], footer: str = ""
) -> None:
    """Render and write atomically; the footer says what made the page."""
    text = (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(title=title, note=note, sections=sections, footer=footer)
    )
    write_atomic(path, text.encode())
