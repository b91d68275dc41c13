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
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #1c2128; background: #fff }
table { border-collapse: collapse } th, td { padding: .25rem .7rem; text-align: right;
       border-bottom: 1px solid #d8dee4 } th:first-child, td:first-child { text-align: left }
.grid { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } img { max-width: 190px }
figcaption { font-size: 12px; color: #57606a; max-width: 20rem } p.note { color: #57606a }
</style></head><body>
<h1>{{ title }}</h1><p class="note">{{ note }}</p>
{% for section in sections %}
<section><h2>{{ section.title }}</h2>{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.rows %}<table><thead><tr>{% for name in section.columns %}
<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.rows %}<tr>
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>{% endif %}
<div class="grid">{% for item in section.figures %}<figure>
{% if item.image %}<img alt="{{ item.caption }}" src="{{ item.image }}">
{% endif %}
{{ item.svg }}<figcaption>{{ item.caption }}</figcaption></figure>{% endfor %}</div></section>
{% endfor %}</body></html>
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


def thumbnail(path: Path, side: int = 190) -> str:
    """A data URI of the photo, at most ``side`` pixels a side; empty if it cannot be read."""
    try:
        image = decode(path.read_bytes(), PreprocessSpec(resize_size=256, crop_size=224))
    except (OSError, ValueError):
        return ""
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, title: str, note: str, sections: list[Section]) -> None:
    """Render and write atomically."""
    text = (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(title=title, note=note, sections=sections)
    )
    write_atomic(path, text.encode())
