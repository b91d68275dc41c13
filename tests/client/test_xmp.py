"""Sidecars of other programs keep everything but the rating."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nima_client.library.xmp import read_rating, write_rating

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
