"""The profile ``default`` to its end in a real tritonserver, without a GPU.

gpu_model.py and nvImageCodec are the real ones (its CPU decoders); CV-CUDA, which does not import
without a GPU, is stood in for (``standins/cvcuda.py``), and the engine by the same network in ONNX
Runtime. What is shown: how requests are merged, split, handed on by DLPack and refused. What is
not: CV-CUDA's pixels, CUDA streams, GPU memory.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from PIL import Image

from nima_build.gpu import find_gpus
from nima_client.preprocess import PreprocessSpec, preprocess

pytest.importorskip("nvidia.nvimgcodec", reason="needs the extra gpu-preprocessing")
STANDINS = Path(__file__).parent / "standins"


@pytest.fixture(scope="module")
def server(
    tritonserver: Any, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    if find_gpus():
        pytest.skip("this machine has a GPU: run make gpu-check")
    folder = tmp_path_factory.mktemp("default")
    copy = Path(shutil.copytree(repository, folder / "copy"))
    config = copy / "nima_preprocess" / "config.pbtxt"
    text, found = re.subn(r"KIND_GPU count: \d+", "KIND_CPU count: 1", config.read_text())
    assert found == 1
    config.write_text(text)
    network = copy / "nima_network"
    shutil.copyfile(network / "configs" / "embedded.pbtxt", network / "config.pbtxt")
    # Triton puts a model's own folder on its path, and takes no PYTHONPATH.
    shutil.copy(STANDINS / "cvcuda.py", copy / "nima_preprocess" / "1")
    with tritonserver(copy, folder) as running:
        assert "Started GRPCInferenceService" in running.log, running.log[-3000:]
        yield running


def infer(url: str, model: str, output: str, files: list[bytes]) -> np.ndarray:
    tensor = triton_grpc.InferInput("IMAGE", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_).reshape(-1, 1))
    with triton_grpc.InferenceServerClient(url) as client:
        return client.infer(model, [tensor], client_timeout=60).as_numpy(output)


def ask(url: str, files: list[bytes]) -> np.ndarray | str:
    """Pixels, or the error in words."""
    try:
        return infer(url, "nima_preprocess", "PIXELS", files)
    except triton_grpc.InferenceServerException as error:
        return f"{error.status()} {error.message()}"


def executions(url: str) -> tuple[int, int]:
    """Images and batches that nima_preprocess has served."""
    with triton_grpc.InferenceServerClient(url) as client:
        (model,) = client.get_inference_statistics("nima_preprocess").model_stats
    return model.inference_count, model.execution_count


def test_merged_requests_are_answered_and_refused_each_by_itself(server: Any, encode: Any) -> None:
    """Six requests in one batch: JPEG and PNG, one to three images, two of them with bad files."""
    photos = [encode("JPEG", (300 + 8 * n, 200), seed=n, quality=90) for n in range(6)]
    png = encode("PNG", (240, 320), seed=9)
    requests = [
        photos[0:1],
        [photos[1], b"", photos[2]],
        [png, photos[3]],
        [photos[4][:2000]],
        photos[3:6],
        [png],
    ]

    # Nothing holds a request back for company, so that they merge only where they come together.
    for _ in range(10):
        _, batches = executions(server.grpc_url)
        with ThreadPoolExecutor(len(requests)) as pool:
            answers = list(pool.map(lambda files: ask(server.grpc_url, files), requests))
        merged = executions(server.grpc_url)[1] - batches
        if merged < 4:
            break
    assert merged < 4, "the requests were not merged: this shows nothing"
    spec = PreprocessSpec()
    for files, answer in zip(requests, answers, strict=True):
        if b"" in files:
            assert "INVALID_ARGUMENT" in answer
            assert "EMPTY" in answer
        elif len(files[0]) == 2000:
            assert "UNDECODABLE" in answer
        else:
            assert isinstance(answer, np.ndarray), answer
            assert answer.shape == (len(files), 224, 224, 3)
            want = np.stack([preprocess(data, spec) for data in files]).astype(int)
            assert np.abs(want - answer).max() <= 1


def test_running_out_of_memory_fails_that_request_and_no_neighbour(
    server: Any, encode: Any
) -> None:
    photo, file = encode("JPEG", (300, 200), seed=1), io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(file, "PNG")
    large = file.getvalue()
    (stub,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if any("/nima_preprocess/" in part for part in process.cmdline())
    )
    spec = PreprocessSpec()
    before = stub.rlimit(psutil.RLIMIT_AS)
    stub.rlimit(psutil.RLIMIT_AS, (stub.memory_info().vms + (64 << 20), before[1]))
    try:
        for _ in range(10):
            _, batches = executions(server.grpc_url)
            with ThreadPoolExecutor(6) as pool:
                files = [photo, photo, large, photo, photo, photo]
                answers = list(pool.map(lambda data: ask(server.grpc_url, [data]), files))
            merged = executions(server.grpc_url)[1] - batches
            assert "INTERNAL" in answers[2], answers[2]
            assert "preprocessing failed: MemoryError" in answers[2]
            for answer in (*answers[:2], *answers[3:]):
                assert isinstance(answer, np.ndarray), answer
                np.testing.assert_allclose(answer[0], preprocess(photo, spec), atol=1)
            if merged < 4:
                break
        assert merged < 4, "the requests were not merged: this shows nothing"
    finally:
        stub.rlimit(psutil.RLIMIT_AS, before)


def test_ensemble_scores_as_the_embedded_profile_does(
    server: Any, repository: Path, encode: Any
) -> None:
    from nima_build.parity import means, onnx_scorer

    files = [encode("JPEG", (320, 240), seed=n) for n in range(3)]
    pixels = np.stack([preprocess(data, PreprocessSpec()) for data in files])
    expected = onnx_scorer(repository / "nima_network" / "1" / "model.onnx")(pixels)
    actual = infer(server.grpc_url, "nima", "DISTRIBUTION", files)
    # A pixel may differ by 1/255 (SIMD resize), and random weights amplify that.
    np.testing.assert_allclose(means(actual), means(expected), atol=0.05)
