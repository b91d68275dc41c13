"""The real tritonserver: raw gRPC in, scores out; nothing of it is mocked."""

from __future__ import annotations

import concurrent.futures
import glob
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from tritonclient.utils import InferenceServerException

import nima_client
from nima_build.metadata import ArtefactError
from nima_build.repository import default_repository, load_metadata
from nima_build.server import EmbeddedServer, Probe, ServerError, ServerOptions
from nima_build.server._private import PrivateFolder
from nima_client.contract import RejectionCode, parse_rejections
from nima_client.preprocess import PreprocessSpec, preprocess


class InProcess:
    """The same preprocessing and graph without a server."""

    def __init__(self) -> None:
        repository = default_repository()
        self.spec: PreprocessSpec = load_metadata(repository).spec
        path = repository / "nima_network" / "1" / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def mean(self, data: bytes) -> float:
        pixels = preprocess(data, self.spec)[None]
        return float(self.session.run(["MEAN"], {"PIXELS": pixels})[0][0, 0])


@pytest.fixture(scope="module")
def in_process() -> InProcess:
    return InProcess()


def test_distribution_and_moments_agree(triton, encode, infer):
    answer = infer(triton.grpc_url, [encode(seed=1), encode("PNG", seed=2)])
    distribution = answer["DISTRIBUTION"].astype(np.float64)
    ratings = np.arange(1, 11)
    assert distribution.shape == (2, 10)
    assert np.allclose(distribution.sum(1), 1, atol=1e-5)
    mean = distribution @ ratings
    assert np.allclose(answer["MEAN"][:, 0], mean, atol=1e-4)
    std = np.sqrt((distribution * (ratings - mean[:, None]) ** 2).sum(1))
    assert np.allclose(answer["STD"][:, 0], std, atol=1e-4)


def test_scores_equal_the_same_steps_in_process(triton, in_process, skimage_photos, infer):
    for path in skimage_photos:
        data = path.read_bytes()
        assert abs(infer(triton.grpc_url, [data])["MEAN"][0, 0] - in_process.mean(data)) < 1e-4


def test_bench_and_edge_photos_equal_the_same_steps_in_process(
    triton, in_process, shared_photos, infer
):
    for path in sorted([*(shared_photos / "bench").iterdir(), *(shared_photos / "edge").iterdir()]):
        data = path.read_bytes()
        score = infer(triton.grpc_url, [data])["MEAN"][0, 0]
        assert abs(score - in_process.mean(data)) < 1e-4, path.name


def test_scores_are_bit_equal_alone_together_and_beside_bad_ones(triton, encode, infer):
    photos = [encode(seed=seed) for seed in range(8)]
    alone = [infer(triton.grpc_url, [photo])["DISTRIBUTION"][0] for photo in photos]
    together = infer(triton.grpc_url, photos)["DISTRIBUTION"]
    assert np.array_equal(np.stack(alone), together)
    bad = [b"", b"text", photos[0][:500]]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        noise = [pool.submit(infer, triton.grpc_url, [b]) for b in bad * 8]
        beside = list(pool.map(lambda p: infer(triton.grpc_url, [p])["DISTRIBUTION"][0], photos))
        assert all(f.exception() is not None for f in noise)
    assert np.array_equal(np.stack(beside), together)


def test_one_bad_request_of_eight_fails_alone(triton, encode, infer):
    requests = [[encode(seed=seed)] for seed in range(7)]
    requests.insert(3, [encode()[:700]])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(infer, triton.grpc_url, request) for request in requests]
        errors = {i: f.exception() for i, f in enumerate(answers) if f.exception()}
    assert list(errors) == [3]
    (rejection,) = parse_rejections(str(errors[3]))
    assert (rejection.index, rejection.code) == (0, RejectionCode.UNDECODABLE)


def test_every_bad_index_of_a_request_is_named(triton, encode, infer):
    with pytest.raises(InferenceServerException) as caught:
        infer(triton.grpc_url, [encode(), b"", encode(), b"no image", encode()[:600]])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert [(r.index, r.code.value) for r in parse_rejections(caught.value.message())] == [
        (1, "EMPTY"),
        (3, "UNSUPPORTED"),
        (4, "UNDECODABLE"),
    ]


def test_limits_are_model_parameters(encode, infer):
    from nima_client.preprocess import Limits

    options = ServerOptions(instances=1, limits=Limits(max_bytes=20_000, max_pixels=90_000))
    with EmbeddedServer(options) as server:
        infer(server.grpc_url, [encode(size=(300, 300))])
        for data in (encode(size=(301, 300)), b"\xff\xd8\xff" + b"\0" * 20_000):
            with pytest.raises(InferenceServerException, match="TOO_LARGE"):
                infer(server.grpc_url, [data])
        server.end_processes(grace=0)


def in_group(process: psutil.Process, group: int) -> bool:
    """Whether it belongs to a process group; what has just ended does not."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_a_stopped_server_leaves_nothing_behind(tmp_path):
    server = EmbeddedServer(ServerOptions(instances=1, log_file=tmp_path / "triton.log"))
    with server:
        group = server.pid
        assert Probe(server.grpc_url)().alive
        assert server.defect() is None
        assert [p for p in psutil.process_iter() if in_group(p, group)]
        prefix = server._private.shm_prefix
        assert glob.glob(f"/dev/shm/{prefix}*")
        folder = server._folder
    assert not folder.exists()
    assert not glob.glob(f"/dev/shm/{prefix}*")
    assert [p for p in psutil.process_iter() if in_group(p, group)] == []
    assert "successfully loaded 'nima'" in (tmp_path / "triton.log").read_text()


def test_a_taken_port_is_refused(triton):
    port = int(triton.grpc_url.rpartition(":")[2])
    with pytest.raises(ServerError, match="choose another port"):
        EmbeddedServer(ServerOptions(grpc_port=port, instances=1, start_timeout=20)).start()
    assert Probe(triton.grpc_url)().alive


def test_a_repository_without_a_network_says_what_to_run(tmp_path):
    with pytest.raises(ArtefactError, match="nima export"):
        EmbeddedServer(ServerOptions(model_repository=tmp_path)).start()


def test_serving_and_the_client_import_no_torch():
    code = (
        "import sys, nima_client, nima_client.preprocess, nima_build.server, nima_build.cli.serve;"
        "print([m for m in ('torch', 'tritonclient', 'grpc', 'pytriton') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_model_files_of_the_cpu_import_no_torch():
    for path in Path(default_repository()).glob("*/1/model.py"):
        assert "torch" not in path.read_text().replace("no torch", ""), path


def test_what_its_processes_leave_in_the_temporary_folder_goes_with_them() -> None:
    """A killed stub cannot clean up; PyTorch copies its package there (7 MB) when it opens it."""
    with EmbeddedServer(ServerOptions(instances=1)) as server:
        (folder,) = {psutil.Process(pid).environ()["TMPDIR"] for pid in server.stub_pids()}
        assert Path(folder).parent == server._folder
        left = Path(folder, "aotinductor_abcdef")
        left.mkdir()
        server.end_processes(grace=0)
        server.launch()
        assert Path(folder).is_dir()
        assert not left.exists()
        server.end_processes(grace=0)
    assert not Path(folder).exists()


def test_a_second_ctrl_c_while_a_server_ends_kills_it_and_leaves_nothing() -> None:
    server = EmbeddedServer(ServerOptions())
    server._private = PrivateFolder()
    folder = server._private.path
    # One that takes its time: requests in flight, models to unload.
    program = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        ["sh", "-c", program], start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    server._process = process
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.stop()
    finally:
        signal.signal(signal.SIGALRM, before)
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()


def test_no_code_of_the_current_folder_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be one of uploads, or ``/tmp``: Triton's stubs import from it before all else."""
    ran = tmp_path / "ran"
    here = tmp_path / "here"
    here.mkdir()
    for module in ("simplejpeg", "triton_python_backend_utils", "onnxruntime", "PIL"):
        (here / f"{module}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.chdir(here)
    # What is named is imported from, from here too.
    monkeypatch.setenv("PYTHONPATH", os.path.relpath(Path(nima_client.__file__).parents[1]))
    with EmbeddedServer(ServerOptions(instances=1)) as server:
        for pid in (server.pid, *server.stub_pids()):
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert not ran.exists()


def test_other_users_of_the_machine_cannot_read_the_photos_in_shared_memory(triton) -> None:
    """Once it is up; the Python backend makes the files readable by all, whatever the umask."""
    files = glob.glob(f"/dev/shm/{triton.shm_prefix}*")
    assert files
    assert {stat.S_IMODE(os.stat(file).st_mode) for file in files} == {0o600}
