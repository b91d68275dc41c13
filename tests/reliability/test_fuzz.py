"""Mutated files of every format: in process under limits, and through the real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from _corpus import formats, mutated, seeds
from fuzz import run
from PIL import Image
from tritonclient.utils import InferenceServerException

from nima_client.contract import (
    INPUT_IMAGE,
    MAX_BATCH_SIZE,
    MODEL_NAME,
    OUTPUT_MEAN,
    parse_rejections,
)
from nima_client.preprocess import ImageRejected, PreprocessSpec, preprocess

FILES = 2_100
# Through the server; `make reliability` sends 20,000.
SERVED_FILES = int(os.environ.get("NIMA_FUZZ_SERVED", "350"))


def test_mutated_files_neither_crash_nor_hang_nor_leak() -> None:
    report = run(FILES, seed=7)
    print(report)
    assert report.failures == []
    assert report.files == FILES
    assert set(report.by_format) == set(formats())
    # A corpus that is all refused, or all scored, would test little.
    assert report.scored > FILES / 10
    assert sum(report.refused.values()) > FILES / 10


def test_the_fuzzer_notices_a_crash_a_hang_and_a_wrong_answer(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself: a child that dies, hangs or raises is reported with the file's number."""
    import fuzz

    script = tmp_path / "fuzz.py"
    source = (fuzz.HERE / "fuzz.py").read_text()
    spoiled = source.replace(
        "    _, data = mutated(number, seed)\n    spec",
        "    _, data = mutated(number, seed)\n"
        "    if number == 3: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if number == 5: raise RuntimeError('not a refusal')\n"
        "    if number == 8:\n"
        "        while True: pass\n"
        "    spec",
    ).replace("SECONDS_A_FILE = 10", "SECONDS_A_FILE = 1")
    assert spoiled != source
    script.write_text(spoiled)
    (tmp_path / "_corpus.py").write_text((fuzz.HERE / "_corpus.py").read_text())
    monkeypatch.setattr(fuzz, "__file__", str(script))
    monkeypatch.setattr(fuzz, "SECONDS_A_FILE", 1)
    failures = fuzz.run(12).failures
    assert [f.split(" (")[0] for f in failures] == ["file 3", "file 8", "file 5"]
    assert "-11" in failures[0]
    assert "ran for more than 1 s" in failures[1]
    assert "not a refusal" in failures[2]


def test_mutated_files_do_not_poison_their_neighbours(
    shared_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos among mutated files, eight at a time, have the very scores they have alone."""
    # As in the server: our own limit decides.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    spec, url = PreprocessSpec(), shared_server.grpc_url
    good = [kind_seeds[0] for kind_seeds in map(seeds, formats())]
    alone = [_ask(url, [photo]) for photo in good]
    stubs = shared_server.stub_pids()
    sent: list[tuple[bytes, int | None]] = []
    for number in range(SERVED_FILES):
        sent.append((mutated(number, seed=11)[1], None))
        if number % 5 == 0:
            which = number // 5 % len(good)
            sent.append((good[which], which))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda item: _ask(url, [item[0]]), sent))
    for (data, which), answer in zip(sent, answers):
        if which is not None:
            assert answer == alone[which]
        else:
            # The server says what the same preprocessing says here.
            expected = _refusal(data, spec)
            assert (answer[0] if expected != "scored" else "scored") == expected, len(data)
            assert expected != "scored" or 1 <= float(answer[0]) <= 10
    assert shared_server.stub_pids() == stubs, "a stub died"


def _refusal(data: bytes, spec: PreprocessSpec) -> str:
    try:
        preprocess(data, spec)
    except ImageRejected as refusal:
        return refusal.code.value
    return "scored"


def _ask(url: str, images: list[bytes]) -> list[str]:
    """What the server itself says of images sent in one request, with no client in between."""
    with triton.InferenceServerClient(url) as client:
        tensor = triton.InferInput(INPUT_IMAGE, [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=np.object_)[:, None])
        try:
            means = client.infer(MODEL_NAME, [tensor]).as_numpy(OUTPUT_MEAN)
        except InferenceServerException as error:
            refused = {r.index: r.code.value for r in parse_rejections(str(error))}
            return [refused.get(i, "ok") for i in range(len(images))] if refused else [str(error)]
        return [repr(float(mean)) for mean in means[:, 0]]


def test_bombs_through_the_server_leave_others_alone(start_server: Callable[..., object]) -> None:
    """The server itself refuses each bomb by name, lives on and does not grow."""
    import _bombs

    server = start_server(instances=1)
    photo = seeds("JPEG")[0]
    expected = _ask(server.grpc_url, [photo])
    stubs = server.stub_pids()
    before = {pid: psutil.Process(pid).memory_info().rss for pid in stubs}
    bombs = [
        _bombs.bmp_run_length(9_000),
        _bombs.jpeg_scans(2_000, 4_000),
        _bombs.gif_frame(60_000, 60_000),
        _bombs.png_dimensions(30_000, 30_000),
        _bombs.tiff_tile(40_000),
        _bombs.jpeg_ends(1 << 20),
    ]
    assert _ask(server.grpc_url, [*bombs, photo]) == ["TOO_LARGE"] * len(bombs) + ["ok"]
    # Nor does the log grow by what libtiff would say of this one: 5 MB.
    log = server.log_path.stat().st_size
    _ask(server.grpc_url, [_bombs.tiff_fax_noise(60_000)])
    assert server.log_path.stat().st_size - log < 5_000
    assert _ask(server.grpc_url, [photo]) == expected
    assert server.stub_pids() == stubs
    grown = sum(psutil.Process(pid).memory_info().rss - rss for pid, rss in before.items())
    assert grown < 200 << 20, f"{grown >> 20} MiB"


def test_more_images_than_a_request_may_hold_are_refused(shared_server) -> None:
    photo = seeds("JPEG")[0]
    (said,) = _ask(shared_server.grpc_url, [photo] * (MAX_BATCH_SIZE + 1))
    assert "batch-size must be <= 32" in said
    assert len(_ask(shared_server.grpc_url, [photo] * MAX_BATCH_SIZE)) == MAX_BATCH_SIZE


def test_running_out_of_memory_fails_that_request_alone(
    start_server: Callable[..., object],
) -> None:
    import _bombs

    server = start_server(instances=1)
    photo = seeds("JPEG")[0]
    expected = _ask(server.grpc_url, [photo])
    stubs = server.stub_pids()
    for pid in stubs:
        stub = psutil.Process(pid)
        ceiling = stub.memory_info().vms + (64 << 20)
        stub.rlimit(psutil.RLIMIT_AS, (ceiling, ceiling))
    large = _bombs.png_zeros(9_000, 9_000)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: _ask(server.grpc_url, [i]), [photo, large, photo, photo]))
    assert [answers[i] for i in (0, 2, 3)] == [expected] * 3
    assert "preprocessing failed: MemoryError" in answers[1][0]
    assert _ask(server.grpc_url, [photo]) == expected
    assert server.stub_pids() == stubs
