"""Sidecars of other programs keep everything but the rating."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nima_client.library.actions import rate
from nima_client.library.rows import Row
from nima_client.library.xmp import XmpError, read_rating, write_rating

SIDECAR = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- by hand -->
<x:xmpmeta xmlns:x="adobe:ns:meta/"><!-- a & <b> -->
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="x">
   <?in side?>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<!-- behind -->
<?xpacket end="w"?>
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_packet_wrapper_and_comments_stay(tmp_path: Path, encoding: str) -> None:
    photo, sidecar = tmp_path / "a.jpg", tmp_path / "a.jpg.xmp"
    sidecar.write_bytes(SIDECAR.encode(encoding))
    for rating in (4, 2):
        write_rating(photo, rating)
        assert read_rating(photo) == rating
        text = sidecar.read_text("utf-8")
        kept = re.compile(r"<\?(?!xml ).*?\?>|<!--.*?-->|dc:format=\S+(?=[ >])")
        assert kept.findall(text) == kept.findall(SIDECAR)
        assert text.startswith('<?xml version="1.0" encoding="utf-8"?>\n<?xpacket begin="\ufeff"')


def nested(depth: int) -> str:
    return SIDECAR.replace("<?in side?>", "<a>" * depth + "</a>" * depth)


DOCTYPE = '<!DOCTYPE x [<!ENTITY a "lol">]>\n' + SIDECAR.replace("<?in side?>", "&a;")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (DOCTYPE.encode(), "has a DOCTYPE"),
        (DOCTYPE.encode("utf-16"), "has a DOCTYPE"),  # where its bytes are not those letters
        (nested(20_000).encode(), "nested"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "not XML"),
        (b"<a>" + bytes(17 << 20), "more than 16 MiB"),
    ],
    ids=["doctype", "doctype utf-16", "deep", "encoding", "huge"],
)
def test_a_hostile_sidecar_is_told_and_stays(tmp_path: Path, found: bytes, said: str) -> None:
    told = []
    rows = [Row(str(tmp_path / name), 5.0, 1.0, None, (0.1,) * 10) for name in ("a.jpg", "b.jpg")]
    for row in rows:
        Path(row.file).write_bytes(b"a photo")
    (tmp_path / "a.jpg.xmp").write_bytes(found)
    assert rate(rows, report=lambda row, error: told.append((row.file, str(error)))) == 1
    assert (tmp_path / "a.jpg.xmp").read_bytes() == found
    assert read_rating(tmp_path / "b.jpg") == 3
    ((file, why),) = told
    assert file == rows[0].file
    assert said in why


def test_a_sidecar_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg.xmp")
    with pytest.raises(XmpError, match="not a file"):
        write_rating(tmp_path / "a.jpg", 3)


def test_elements_within_elements_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jpg.xmp").write_text(nested(100))
    write_rating(tmp_path / "a.jpg", 3)
    assert (tmp_path / "a.jpg.xmp").read_text().count("<a>") == 99  # the innermost is empty
