"""A new model version on the real server, under load and without retries: nothing fails."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.numpy_helper
import psutil
import pytest
from _load import photos, supervised
from _metrics import metrics, queries, rows

from nima_build.checksums import write_checksums
from nima_build.metadata import METADATA_NAME, ModelMetadata
from nima_build.server import EmbeddedServer, RestartPolicy, RolloutError, ServerOptions
from nima_build.server._rollout import Repository
from nima_client import NO_RETRIES, ImageScore, NimaClient
from nima_client.contract import NETWORK_MODEL


def variant(repository: Path, folder: Path, name: str, scale: float) -> Path:
    """A repository whose network gives other scores and says that it is another checkpoint."""
    copy = folder / name
    shutil.copytree(repository, copy)
    version = copy / NETWORK_MODEL / "1"
    graph = onnx.load(version / "model.onnx")
    # The head: the largest matrix of ten rows or columns.
    heads = [t for t in graph.graph.initializer if 10 in t.dims and len(t.dims) == 2]
    head = max(heads, key=lambda t: t.dims[0] * t.dims[1])
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) * scale, head.name))
    onnx.save(graph, version / "model.onnx")
    values = ModelMetadata.load(version / METADATA_NAME).__dict__ | {
        "name": name,
        "checkpoint_sha256": hashlib.sha256(name.encode()).hexdigest(),
        "onnx_sha256": hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest(),
    }
    ModelMetadata(**values).save(version / METADATA_NAME)
    write_checksums(copy)
    return copy


class Load:
    """Scores in a thread, without retries, until told to stop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.results: list[tuple[int, object]] = []
        self._thread = threading.Thread(target=self._run)

    def _images(self):
        number = 0
        while not self._stop.is_set():
            yield photos()[number % len(photos())]
            number += 1

    def _run(self) -> None:
        with NimaClient(self._url, retry=NO_RETRIES, max_in_flight=4) as client:
            for result in client.score_iter(self._images(), on_error="return"):
                self.results.append((result.index % len(photos()), result))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def wait_for(self, more: int) -> None:
        """Until ``more`` further answers are there."""
        goal, end = len(self.results) + more, time.monotonic() + 60
        while len(self.results) < goal and time.monotonic() < end:
            time.sleep(0.02)
        assert len(self.results) >= goal


def scores_of(url: str) -> list[ImageScore]:
    with NimaClient(url) as client:
        return client.score(photos())


def test_new_version_and_back_without_a_failed_request(repository: Path, tmp_path: Path) -> None:
    new = variant(repository, tmp_path, "second", 0.5)
    with supervised(ServerOptions(model_repository=repository, instances=1)) as (
        server,
        sup,
        lines,
    ):
        first = scores_of(server.grpc_url)
        with Load(server.grpc_url) as load:
            load.wait_for(30)
            out = server.roll_out(new)
            load.wait_for(30)
            second = scores_of(server.grpc_url)
            shared = list(Path("/dev/shm").glob(f"{server.shm_prefix}*"))
            assert {file.stat().st_mode & 0o777 for file in shared} == {0o600}
            back = server.roll_back()
            load.wait_for(30)
        assert (out.version, out.previous, back.version) == (2, 1, 1)
        print(f"out {out.seconds:.1f} s, back {back.seconds:.1f} s, {len(load.results)} requests")
        assert sup.restarts == 0, lines
        assert server.metadata.name == first[0].checkpoint_name

    # Clients see version and checkpoint, and every score belongs to what it says it belongs to.
    assert {s.model_version for s in first} == {"1"}
    assert {(s.model_version, s.checkpoint_name) for s in second} == {("2", "second")}
    assert first[0].distribution != second[0].distribution
    by_version = {"1": first, "2": second}
    seen = collections.Counter()
    for which, result in load.results:
        assert isinstance(result, ImageScore), result
        expected = by_version[result.model_version][which]
        assert result.distribution == expected.distribution
        assert result.checkpoint_sha256 == expected.checkpoint_sha256
        seen[result.model_version] += 1
    assert min(seen["1"], seen["2"]) >= 30


def test_a_withdrawn_version_does_not_come_back(
    start_server: Callable[..., EmbeddedServer], repository: Path, tmp_path: Path
) -> None:
    server = start_server(model_repository=repository)
    bad, fix = variant(repository, tmp_path, "bad", 0.5), variant(repository, tmp_path, "fix", 0.7)
    versions = [server.roll_out(bad).version, server.roll_back().version]
    assert versions == [2, 1]
    with pytest.raises(RolloutError, match="nothing older than version 1"):
        server.roll_back()
    out = server.roll_out(fix)
    assert (out.version, out.previous) == (3, 1)
    # What the dashboard shows by version is of this one: the ensemble's counters always say 1.
    scores_of(server.grpc_url)
    for query in queries("version").values():
        ((name, selector),) = re.findall(r"(nv_\w+)\{([^}]*)\}", query)
        found = rows(metrics(server), name, selector)
        assert [labels["version"] for labels, answers in found if answers] == ["3"], query
    assert server.roll_back().version == 1
    assert {s.checkpoint_name for s in scores_of(server.grpc_url)} == {
        ModelMetadata.load(repository / NETWORK_MODEL / "1" / METADATA_NAME).name
    }
    # The two that can serve are kept, not every one there ever was.
    kept = {f.name for f in (server.log_path.parent / "models" / NETWORK_MODEL).iterdir()}
    assert kept == {"1", "3", "config.pbtxt"}


def test_by_signals_and_across_a_restart(repository: Path, tmp_path: Path) -> None:
    """SIGHUP to `nima serve` rolls out what lies in its repository, SIGUSR1 goes back; what comes
    while the server starts or is restarted waits for it; a tritonserver that is killed comes back
    with the version rolled out.
    """
    served = tmp_path / "repository"
    shutil.copytree(repository, served)
    ports = ("--grpc-port=0", "--http-port=0", "--metrics-port=0", "--instances=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "nima_client.cli.main", "serve", f"--model-repository={served}",
         *ports],
        # From a terminal, SIGHUP would end it.
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    # What waits in vain for a line then sees the end of them.
    no_longer = threading.Timer(120.0, process.kill)
    no_longer.start()

    def wait_for(text: str) -> str:
        for line in process.stderr:
            if text in line:
                return line
        raise AssertionError(f"ended without saying {text!r}")

    def kill_tritonserver() -> None:
        children = psutil.Process(process.pid).children()
        (server,) = (child for child in children if child.name() == "tritonserver")
        server.kill()

    try:
        wait_for("starting")
        process.send_signal(signal.SIGUSR1)
        url = process.stdout.readline().split()[1]
        first = scores_of(url)
        wait_for("serving")
        wait_for("kept to go back to")
        shutil.copytree(
            variant(repository, tmp_path, "second", 0.5) / NETWORK_MODEL,
            served / NETWORK_MODEL,
            dirs_exist_ok=True,
        )
        write_checksums(served)
        kill_tritonserver()
        wait_for("restarting")
        process.send_signal(signal.SIGHUP)
        wait_for("SIGHUP waits until the server answers again")
        assert "version 2 (second, checkpoint" in wait_for("in place of 1")
        second = scores_of(url)
        assert {(s.model_version, s.checkpoint_name) for s in second} == {("2", "second")}
        kill_tritonserver()
        wait_for("answering again")
        again = scores_of(url)
        assert [s.distribution for s in again] == [s.distribution for s in second]
        assert {s.model_version for s in again} == {"2"}
        process.send_signal(signal.SIGUSR1)
        wait_for("in place of 2")
        assert [s.distribution for s in scores_of(url)] == [s.distribution for s in first]
        process.send_signal(signal.SIGUSR1)
        assert "kept to go back to" in wait_for("version 1")
    finally:
        no_longer.cancel()
        process.terminate()
        process.communicate(timeout=60)


def test_a_change_that_meets_a_hung_server_waits_for_its_restart(
    repository: Path, tmp_path: Path
) -> None:
    """As `nima serve` makes one: frozen, the server shows no defect until probes have failed."""
    second = variant(repository, tmp_path, "second", 0.5)
    options = ServerOptions(model_repository=repository, instances=1)
    policy = RestartPolicy(probe_seconds=0.5, probe_timeout=2.0)
    with supervised(options, policy) as (server, supervisor, lines):
        os.kill(server.pid, signal.SIGSTOP)
        assert supervisor.wait_answering("SIGHUP")
        done = server.roll_out(second)
        assert (done.version, supervisor.restarts) == (2, 1)
        assert {s.checkpoint_name for s in scores_of(server.grpc_url)} == {"second"}
    assert "SIGHUP waits until the server answers again" in lines


def test_a_server_that_is_given_up_meanwhile_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given_up(_repository: Repository, _source: Path) -> None:
        server.end_processes(grace=0)  # as the supervisor does where the probe has failed
        raise RolloutError("version 2 was not put in place: Connection reset by peer")

    monkeypatch.setattr(Repository, "roll_out", given_up)
    said = r"by peer; tritonserver hung or ended .* try again"
    options = ServerOptions(model_repository=repository, instances=1)
    with EmbeddedServer(options) as server, pytest.raises(RolloutError, match=said):
        server.roll_out(repository)


def test_a_bad_version_leaves_the_old_one_in_place(repository: Path, tmp_path: Path) -> None:
    damaged = variant(repository, tmp_path, "damaged", 0.5)
    with (damaged / NETWORK_MODEL / "1" / "model.onnx").open("r+b") as file:
        file.truncate(1000)
    broken = tmp_path / "broken"
    shutil.copytree(damaged, broken)
    path = broken / NETWORK_MODEL / "1" / METADATA_NAME
    digest = hashlib.sha256((broken / NETWORK_MODEL / "1" / "model.onnx").read_bytes()).hexdigest()
    ModelMetadata(**ModelMetadata.load(path).__dict__ | {"onnx_sha256": digest}).save(path)
    write_checksums(broken)
    other = variant(repository, tmp_path, "other", 0.5)
    path = other / NETWORK_MODEL / "1" / METADATA_NAME
    values = ModelMetadata.load(path).__dict__
    wide = values["preprocessing"] | {"resize_size": 256}
    ModelMetadata(**values | {"preprocessing": wide}).save(path)
    write_checksums(other)

    with EmbeddedServer(ServerOptions(model_repository=repository, instances=1)) as server:
        first = scores_of(server.grpc_url)
        with Load(server.grpc_url) as load:
            with pytest.raises(RolloutError, match="nothing older than version 1"):
                server.roll_back()
            with pytest.raises(RolloutError, match="not the file that"):
                server.roll_out(damaged)
            with pytest.raises(RolloutError, match="version 2 was not put in place"):
                server.roll_out(broken)
            with pytest.raises(RolloutError, match="another preprocessing"):
                server.roll_out(other)
            load.wait_for(30)
        assert all(isinstance(result, ImageScore) for _, result in load.results)
        after = scores_of(server.grpc_url)
        assert [s.to_dict() | {"request_id": ""} for s in after] == [
            s.to_dict() | {"request_id": ""} for s in first
        ]
        # A good one still goes out.
        assert server.roll_out(variant(repository, tmp_path, "good", 0.5)).version == 2
        assert {s.checkpoint_name for s in scores_of(server.grpc_url)} == {"good"}
        server.end_processes(grace=0)
