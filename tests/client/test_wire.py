"""Requests as bytes: what protobuf reads back, and what the upload check takes for ordinary."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient.grpc import service_pb2

from nima_client import ImageRejectedError, Limits
from nima_client._images import PrepareOptions, prepare
from nima_client._quick_header import baseline_jpeg, jpeg_size, metadata_of
from nima_client._transport import InferRequest
from nima_client._wire import encode_request
from nima_client.preprocess import ImageRejected, inspect_header

OPTIONS = PrepareOptions(Limits())


def as_protobuf(request: InferRequest) -> service_pb2.ModelInferRequest:
    """The same request, put together by protobuf alone."""
    raw = b"".join(struct.pack("<I", len(image)) + image for image in request.images)
    message = service_pb2.ModelInferRequest(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.request_id,
        raw_input_contents=[request.images[0] if request.input_type == "UINT8" else raw],
    )
    if request.queue_timeout_s is not None:
        message.parameters["timeout"].int64_param = int(request.queue_timeout_s * 1e6)
    rows = len(request.images)
    shape = [1, len(request.images[0])] if request.input_type == "UINT8" else [rows, 1]
    message.inputs.add(name="IMAGE", datatype=request.input_type, shape=shape)
    for name in ("DISTRIBUTION", "MEAN", "STD"):
        message.outputs.add(name=name)
    return message


# Lengths around the steps of protobuf's seven-bit encoding.
LENGTHS = st.sampled_from([0, 1, 122, 123, 124, 127, 128, 16_379, 16_380, 16_384, 2**21 - 4, 2**21])


@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=3),
    identity=st.text(max_size=20),
    version=st.sampled_from(["", "7"]),
    timeout=st.sampled_from([None, 0.25, 30.0]),
    uint8=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_protobuf_reads_what_was_written(
    lengths: list[int], identity: str, version: str, timeout: float | None, uint8: bool
) -> None:
    images = tuple(bytes([number + 1]) * length for number, length in enumerate(lengths))
    request = InferRequest(
        images[:1] if uint8 else images,
        identity,
        input_type="UINT8" if uint8 else "BYTES",
        queue_timeout_s=timeout,
        model_version=version,
    )
    read = service_pb2.ModelInferRequest.FromString(encode_request(request))
    assert read == as_protobuf(request)


def jpeg(mode: str = "RGB", size: tuple[int, int] = (31, 17), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 90).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 60_000}])
def test_the_quick_check_knows_ordinary_photos(mode: str, options: dict[str, object]) -> None:
    assert jpeg_size(jpeg(mode, **options)) == (31, 17)


def test_what_is_not_ordinary_is_left_to_the_full_check() -> None:
    assert jpeg_size(b"") is None
    assert jpeg_size(b"\x89PNG\r\n\x1a\n") is None
    assert jpeg_size(jpeg()[:100]) is None
    assert jpeg_size(b"\xff\xd8" + b"\xff\xfe\x00\x02" * 1000) is None
    with pytest.raises(ImageRejectedError, match="UNDECODABLE"):
        prepare(jpeg()[:100], OPTIONS)
    with pytest.raises(ImageRejectedError, match="TOO_LARGE"):
        prepare(jpeg(), PrepareOptions(Limits(max_pixels=500)))
    with pytest.raises(ImageRejectedError, match="TOO_LARGE"):
        prepare(jpeg(), PrepareOptions(Limits(max_bytes=500)))


@given(changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4))
@settings(max_examples=300, deadline=None)
def test_both_checks_read_the_same_size(changes: list[tuple[int, int]]) -> None:
    data = bytearray(jpeg())
    for position, value in changes:
        data[position % len(data)] = value
    quick, baseline = jpeg_size(bytes(data)), baseline_jpeg(bytes(data))
    assert baseline is None or baseline[:2] == quick
    if quick is None:
        return
    try:
        full = inspect_header(bytes(data))
    except ImageRejected:
        return  # then the server refuses it
    assert quick == (full.width, full.height)


def test_both_checks_read_the_same_size_of_real_photos(shared_photos: Path) -> None:
    photos = [*shared_photos.glob("edge/**/*.jp*g"), *shared_photos.glob("bench/**/*.jp*g")]
    sizes = [(jpeg_size(data), data) for data in map(Path.read_bytes, photos)]
    ordinary = [(size, inspect_header(data)) for size, data in sizes if size is not None]
    assert len(ordinary) > 30
    assert all(size == (header.width, header.height) for size, header in ordinary)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": 2, "quality": 50}),
        ("L", {}),
        ("RGB", {"exif": b"Exif\x00\x00" + bytes(60_000), "icc_profile": bytes(150_000)}),
        ("RGB", {"optimize": True, "restart_marker_blocks": 4}),
    ],
)
def test_a_jpeg_beyond_doubt_tells_its_size(mode: str, options: dict[str, object]) -> None:
    data = jpeg(mode, **options)
    found = baseline_jpeg(data)
    assert found is not None
    assert found[:2] == (31, 17)
    assert metadata_of(data, found).get("exif") == options.get("exif")


def test_a_jpeg_with_any_doubt_is_left_to_the_full_check() -> None:
    whole = jpeg()
    frame = whole.index(b"\xff\xc0")
    assert baseline_jpeg(jpeg(progressive=True)) is None
    assert baseline_jpeg(jpeg("CMYK")) is None
    assert baseline_jpeg(jpeg(icc_profile=bytes(3 << 20))) is None
    assert baseline_jpeg(whole[: frame + 6]) is None
    assert baseline_jpeg(whole[: whole.index(b"\xff\xda") + 4]) is None
    one_by_one = whole.replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x0c\x01")
    assert one_by_one != whole
    assert baseline_jpeg(one_by_one) is None
    twelve_bits = whole[: frame + 4] + b"\x0c" + whole[frame + 5 :]
    assert baseline_jpeg(twelve_bits) is None
    two_frames = whole[:frame] + whole[frame : frame + 19] + whole[frame:]
    assert baseline_jpeg(two_frames) is None
    # Pillow refuses a file with a segment that ends within its own head.
    for short in (b"\xff\xe0\x00\x07JFIF\0", b"\xff\xe2\x00\x0eICC_PROFILE\0"):
        assert baseline_jpeg(whole[:2] + short + whole[2:]) is None
    for data in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x00"):
        assert baseline_jpeg(data) is None


@given(st.binary(max_size=400))
def test_bytes_of_any_kind_do_not_break_the_quick_headers(data: bytes) -> None:
    for start in (b"", b"\xff\xd8", jpeg()[:160]):
        jpeg_size(start + data)
        baseline_jpeg(start + data)
