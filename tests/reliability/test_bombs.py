"""Each hostile file is refused or scored within seconds and memory, and says why in one line.

Every file runs in a child process of its own, under a memory limit, so that what the limit costs is
measured and a crash is a failed test rather than a dead suite.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Of a core, so that a busy machine does not fail the test.
SECONDS = 10.0
# Beyond what Python, numpy and Pillow take (about 50 MB).
MEGABYTES = 700

_RUNNER = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import _bombs
from PIL import Image
from nima_client.preprocess import ImageRejected, PreprocessSpec, preprocess
Image.MAX_IMAGE_PIXELS = None  # as in the server
name, arguments = sys.argv[2], json.loads(sys.argv[3])
data = getattr(_bombs, name)(**arguments)
made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
try:
    answer = list(preprocess(data, PreprocessSpec()).shape)
except ImageRejected as error:
    answer = str(error)
print(json.dumps({
    "answer": answer, "seconds": time.process_time() - start, "bytes": len(data),
    "made_mb": made // 1024,
    "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
"""

MIB = 1 << 20
SCORED = [224, 224, 3]
BOMBS = [
    # Refused on the header.
    ("png_dimensions", {"width": 30_000, "height": 30_000}, "TOO_LARGE"),
    ("gif_frame", {"width": 60_000, "height": 60_000}, "TOO_LARGE"),
    ("webp_canvas", {"side": 16_000}, "TOO_LARGE"),
    # Refused for their structure.
    ("png_chunks", {"size": 16 * MIB}, "TOO_LARGE"),
    ("png_profiles", {"count": 1_000}, "TOO_LARGE"),
    ("jpeg_fill", {"size": 16 * MIB}, "TOO_LARGE"),
    ("jpeg_junk", {"size": 16 * MIB}, "TOO_LARGE"),
    ("jpeg_segments", {"size": 16 * MIB}, "TOO_LARGE"),
    ("jpeg_segments", {"size": 16 * MIB, "marker": 0xF3}, "TOO_LARGE"),
    ("jpeg_ends", {"size": 16 * MIB}, "TOO_LARGE"),
    ("jpeg_exif_blocks", {"count": 500}, "TOO_LARGE"),
    ("jpeg_scans", {"count": 2_000, "side": 4_000}, "TOO_LARGE"),
    ("gif_blocks", {"size": 16 * MIB}, "TOO_LARGE"),
    ("gif_blocks", {"size": 16 * MIB, "comment": 1}, "TOO_LARGE"),
    ("gif_blocks", {"size": 16 * MIB, "comment": 255}, "TOO_LARGE"),
    ("gif_blocks", {"size": 16 * MIB, "comment": 255, "cut": True}, "TOO_LARGE"),
    ("gif_blocks", {"size": 1 * MIB, "comment": 255}, SCORED),
    ("bmp_run_length", {"side": 9_000}, "TOO_LARGE"),
    ("tiff_tile", {"side": 40_000}, "TOO_LARGE"),
    ("tiff_strips", {"count": 4_000_000}, "TOO_LARGE"),
    # Within the limits: scored, or refused by the decoder, at a bounded cost.
    ("png_zeros", {"width": 9_000, "height": 9_000}, SCORED),
    ("png_texts", {"count": 60}, SCORED),
    ("jpeg_scans", {"count": 100, "side": 2_000}, SCORED),
    ("jpeg_exif_overlapping", {"tags": 5_000, "size": 60_000}, SCORED),
    ("gif_frame", {"width": 3_000, "height": 3_000}, "UNDECODABLE"),
    ("bmp_run_length", {"side": 1_400}, SCORED),
    ("tiff_overlapping", {"tags": 3_000, "size": 8 * MIB}, "UNDECODABLE"),
    ("png_exif_overlapping", {"tags": 3_000, "size": 8 * MIB}, SCORED),
    ("png_profile_overlapping", {"tags": 5_000, "size": 300_000}, SCORED),
    ("webp_exif_overlapping", {"tags": 3_000, "size": 8 * MIB}, SCORED),
    ("tiff_pages", {"count": 500}, SCORED),
    ("webp_frames", {"count": 300}, SCORED),
    ("avif_frames", {"count": 300}, SCORED),
    ("gif_frames", {"count": 1_000}, SCORED),
    ("png_frames", {"count": 1_000}, SCORED),
    ("webp_canvas", {"side": 5_000}, SCORED),
    ("avif_size", {"side": 4_000, "claimed": 100}, SCORED),
]


def run_bomb(name: str, arguments: dict[str, object]) -> dict[str, object]:
    ended = subprocess.run(
        [sys.executable, "-c", _RUNNER, str(HERE), name, json.dumps(arguments)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, f"the process died ({ended.returncode}): {ended.stderr[-300:]}"
    return json.loads(ended.stdout)


@pytest.mark.parametrize(("name", "arguments", "expected"), BOMBS)
def test_bomb_is_cheap(name: str, arguments: dict[str, object], expected: object) -> None:
    result = run_bomb(name, arguments)
    print(name, arguments, result)
    if expected == SCORED:
        assert result["answer"] == SCORED
    else:
        assert str(result["answer"]).startswith(f"{expected}: ")
    assert result["seconds"] < SECONDS
    assert result["megabytes"] - result["made_mb"] < MEGABYTES


def test_polyglots_are_what_their_first_bytes_say() -> None:
    import _bombs

    from nima_client.preprocess import ImageRejected, PreprocessSpec, preprocess

    answers, details = {}, []
    for name, data in _bombs.polyglots().items():
        try:
            preprocess(data, PreprocessSpec())
            answers[name] = "scored"
        except ImageRejected as refusal:
            answers[name] = refusal.code.value
            details.append(refusal.detail)
    assert answers == {
        "JPEG with a ZIP behind it": "scored",
        "JPEG with HTML in a comment": "scored",
        "GIF that is JavaScript": answers["GIF that is JavaScript"],
        "PNG behind a JPEG": "scored",
        "JPEG behind a PNG": "scored",
        "PDF with a JPEG inside": "UNSUPPORTED",
        "SVG": "UNSUPPORTED",
        "PostScript": "UNSUPPORTED",
        "pickle": "UNSUPPORTED",
        "ZIP": "UNSUPPORTED",
        "BM and text": "UNDECODABLE",
    }
    assert all(detail.isprintable() and "<" not in detail for detail in details)
    assert answers["GIF that is JavaScript"] in ("scored", "UNDECODABLE", "TOO_LARGE")
