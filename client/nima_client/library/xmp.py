"""Star ratings in XMP sidecar files, which photo managers read; originals are never touched.

A sidecar lies beside its photo and is called ``photo.jpg.xmp`` (darktable, digiKam, exiftool). An
existing one keeps everything but its ``xmp:Rating``.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima_client._files import atomic_file
from nima_client.library.rows import Row

_X = "adobe:ns:meta/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP = "http://ns.adobe.com/xap/1.0/"
_RATING = f"{{{_XMP}}}Rating"

_MOST_BYTES = 16 << 20
"""Of a sidecar: those of photo managers have thousands; 16 MiB take some seconds and 1 GB."""

_DEEPEST = 200  # elements: ElementTree calls itself for each level as it writes

_DECLARATION = '<?xml version="1.0" encoding="utf-8"?>\n'

_PERCENTILES = (10.0, 35.0, 65.0, 90.0)
# Means crowd between 4 and 7; without a reference set these are the steps between the stars.
_MEANS = (4.0, 4.75, 5.5, 6.25)


class XmpError(ValueError):
    """A sidecar that cannot be changed safely; the message says which and why."""


def stars(row: Row) -> int:
    """1 to 5 stars: by percentile (steps at 10, 35, 65, 90), else by mean (4, 4.75, 5.5, 6.25)."""
    if row.percentile is not None:
        return 1 + sum(row.percentile >= step for step in _PERCENTILES)
    return 1 + sum(row.mean >= step for step in _MEANS)


def sidecar(photo: Path) -> Path:
    """Path of the sidecar of a photo."""
    return photo.with_name(photo.name + ".xmp")


def write_rating(photo: Path, rating: int) -> Path:
    """Put a rating into the sidecar of a photo, which is made if there is none.

    Args:
        photo: the photo; it is not opened.
        rating: 0 (none) to 5 stars.

    Returns:
        The sidecar. A power cut may bring the one before back until its folder is flushed
        (:func:`nima_client._files.flush_folder`).

    Raises:
        XmpError: what lies there is no XMP file, or too large for one; it stays as it is.
        ValueError: a rating out of range.
    """
    if not 0 <= rating <= 5:
        raise ValueError(f"a rating has 0 to 5 stars, not {rating}")
    path = sidecar(photo)
    found = _read(path) if path.exists() else _new()
    tree = found.root
    description = tree.find(f".//{{{_RDF}}}Description")
    if description is None:
        raise XmpError(f"{path}: no rdf:Description in it: not changed")
    for holder in tree.iter(f"{{{_RDF}}}Description"):
        # The property may be written as an attribute or as an element.
        holder.attrib.pop(_RATING, None)
        for element in holder.findall(_RATING):
            holder.remove(element)
    description.set(_RATING, str(rating))
    with atomic_file(path, "wb", one_of_many=True) as file:
        file.write(found.before.encode())
        ET.ElementTree(tree).write(file, encoding="utf-8", xml_declaration=False)
        file.write(found.after.encode())
    return path


def read_rating(photo: Path) -> int | None:
    """The rating in the sidecar of a photo, or None."""
    path = sidecar(photo)
    if not path.exists():
        return None
    for holder in _read(path).root.iter(f"{{{_RDF}}}Description"):
        value = holder.get(_RATING) or holder.findtext(_RATING)
        if value is not None:
            return int(value)
    return None


@dataclass
class _Packet:
    """An XML document; ``before`` and ``after`` its root are the packet wrapper and comments."""

    before: str
    root: ET.Element
    after: str = ""


class _Doctype(Exception):
    """No XMP has one; entities in a stranger's file may expand without end."""


class _Outside(ET.TreeBuilder):
    """Builds the root with its comments, and collects what lies before and after it."""

    def __init__(self) -> None:
        super().__init__(insert_comments=True, insert_pis=True)
        self.texts = ["", ""]
        self._depth = self._roots = 0

    def doctype(self, *_: Any) -> None:
        raise _Doctype

    def start(self, tag: Any, attrs: Any, /) -> ET.Element:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"elements nested more than {_DEEPEST} deep")
        self._roots = 1
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> ET.Element:
        self._depth -= 1
        return super().end(tag)

    def comment(self, text: Any, /) -> Any:
        if self._depth:
            return super().comment(text)
        self.texts[self._roots] += f"<!--{text}-->\n"

    def pi(self, target: Any, text: Any = None, /) -> Any:
        if self._depth:
            return super().pi(target, text)
        self.texts[self._roots] += f"<?{target} {text}?>\n" if text else f"<?{target}?>\n"


def _new() -> _Packet:
    _register(())
    meta = ET.Element(f"{{{_X}}}xmpmeta")
    rdf = ET.SubElement(meta, f"{{{_RDF}}}RDF")
    ET.SubElement(rdf, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})
    return _Packet(_DECLARATION, meta)


def _read(path: Path) -> _Packet:
    if not path.is_file():  # a pipe or a device may have no end
        raise XmpError(f"{path}: not a file: not changed")
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise XmpError(f"{path}: has more than {_MOST_BYTES >> 20} MiB: not changed")
    try:
        root = ET.fromstring(text, ET.XMLParser(target=(outside := _Outside())))
        prefixes = [pair for _, pair in ET.iterparse(io.BytesIO(text), events=("start-ns",))]
    except _Doctype:
        raise XmpError(f"{path}: has a DOCTYPE: not changed") from None
    except (ET.ParseError, LookupError, ValueError) as error:  # LookupError: its encoding
        raise XmpError(f"{path}: not XML ({error}): not changed") from error
    _register(prefixes)
    before, after = outside.texts
    return _Packet(_DECLARATION + before, root, f"\n{after}" if after else "")


def _register(prefixes: Iterable[Any]) -> None:
    """Keep the prefixes of a file, which some readers take literally."""
    for prefix, uri in (("x", _X), ("rdf", _RDF), ("xmp", _XMP), *prefixes):
        if prefix and not prefix.startswith("ns"):
            ET.register_namespace(prefix, uri)
