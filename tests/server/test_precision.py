"""`nima serve --precision int8`: the other graph, told to clients, kept through a rollout."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nima_build.checksums import write_checksums
from nima_build.metadata import METADATA_NAME, ArtefactError
from nima_build.onnx_session import cpu_session
from nima_build.parity import TOLERANCES, triton_scores
from nima_build.rendering import RenderOptions, render
from nima_build.repository import INT8_NAME, check_graph, default_repository, load_metadata
from nima_build.server import EmbeddedServer, ServerError, ServerOptions
from nima_client import NimaClient
from nima_client.preprocess import preprocess


@pytest.fixture(scope="module")
def int8_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(ServerOptions(precision="int8", instances=1)) as server:
        yield server
        server.end_processes(grace=0)


def test_scores_are_those_of_the_int8_graph(int8_server, skimage_photos) -> None:
    repository = default_repository()
    spec = load_metadata(repository).spec
    session = cpu_session(check_graph(repository, "int8"))
    with NimaClient(int8_server.grpc_url) as client:
        scores = client.score([path.read_bytes() for path in skimage_photos])
    for path, score in zip(skimage_photos, scores, strict=True):
        pixels = preprocess(path.read_bytes(), spec)[None]
        assert score.mean == pytest.approx(session.run(["MEAN"], {"PIXELS": pixels})[0].item())


def test_clients_are_told_and_the_gate_takes_its_tolerance(
    int8_server, triton, skimage_photos
) -> None:
    with NimaClient(int8_server.grpc_url) as int8, NimaClient(triton.grpc_url) as fp32:
        told = int8.model_info().served
        assert told.precision == "int8"
        assert fp32.model_info().served.precision == "fp32"
        assert told.checkpoint_sha256 == fp32.model_info().served.checkpoint_sha256
    stage, near, _ = triton_scores(int8_server.grpc_url, skimage_photos)
    other, exact, _ = triton_scores(triton.grpc_url, skimage_photos)
    assert (stage, other) == ("triton-int8", "triton")
    moved = np.abs((near - exact) @ np.arange(1, 11))
    assert 0 < moved.max() <= TOLERANCES[stage].mean


def test_a_rollout_without_the_int8_graph_is_refused(int8_server, tmp_path: Path) -> None:
    other = Path(shutil.copytree(default_repository(), tmp_path / "models"))
    (other / "nima_network" / "1" / INT8_NAME).unlink()
    with pytest.raises(ServerError, match=rf"no {tmp_path}/models/.*int8\.onnx: run `nima export"):
        int8_server.roll_out(other)
    good = Path(shutil.copytree(default_repository(), tmp_path / "good"))
    metadata = good / "nima_network" / "1" / METADATA_NAME
    dataclasses.replace(load_metadata(good), name="good").save(metadata)
    write_checksums(good)
    rollout = int8_server.roll_out(good)
    with NimaClient(int8_server.grpc_url) as client:
        assert client.model_info().served.precision == "int8"
        assert rollout.version == 2
    int8_server.roll_back()


def test_a_graph_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    """As the export of a new network left it before it took the old graph away."""
    other = Path(shutil.copytree(default_repository(), tmp_path / "models"))
    network = other / "nima_network" / "1"
    metadata = load_metadata(other)
    preprocessing = metadata.preprocessing | {"mean": [0.4, 0.4, 0.4]}
    for changed in ({"checkpoint_sha256": "0" * 64}, {"preprocessing": preprocessing}):
        dataclasses.replace(metadata, **changed).save(network / METADATA_NAME)
        with pytest.raises(ArtefactError, match="of another checkpoint or preprocessing than"):
            check_graph(other, "int8")
        check_graph(other, "fp32")
    metadata.save(network / METADATA_NAME)
    check_graph(other, "int8")
    (network / INT8_NAME).write_bytes(b"no graph")
    with pytest.raises(ArtefactError, match="or damaged"):
        check_graph(other, "int8")


def test_missing_graph_and_unknown_precision_are_told_before_a_start(tmp_path: Path) -> None:
    other = Path(shutil.copytree(default_repository(), tmp_path / "models"))
    (other / "SHA256SUMS").unlink()
    (other / "nima_network" / "1" / INT8_NAME).unlink()
    with pytest.raises(ArtefactError, match="--int8 PHOTOS"):
        render(other, tmp_path / "rendered", RenderOptions(precision="int8"))
    with pytest.raises(ServerError, match="choose fp32 or int8"):
        ServerOptions(precision="fp16")
    with pytest.raises(ValueError, match="no precision"):
        RenderOptions(precision="fp16")
