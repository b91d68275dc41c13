"""What a rollout leaves on disk, whatever goes wrong in between: Triton's answers are made up."""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rollout import variant

from nima_build.rendering import RenderOptions, python_instances, render
from nima_build.repository import read_config
from nima_build.server import RolloutError, _rollout
from nima_build.server._rollout import Repository
from nima_client.contract import MODEL_NAME, NETWORK_MODEL


class Triton:
    """Loads whatever it is told to; ``fail`` may raise in the place of an answer."""

    def __init__(self) -> None:
        self.fail: Callable[[str], None] = lambda call: None

    def load_model(self, model: str, headers: Any) -> None:
        self.fail(f"load {model}")

    def infer(self, model: str, inputs: Any, model_version: str) -> Any:
        self.fail("infer")
        return types.SimpleNamespace(as_numpy=lambda name: np.full((1, 10), 0.1))

    def get_model_repository_index(self, headers: Any) -> Any:
        self.fail("index")
        return types.SimpleNamespace(models=[])


@pytest.fixture
def triton() -> Triton:
    return Triton()


@pytest.fixture
def served(repository: Path, tmp_path: Path, triton: Triton) -> Repository:
    render(repository, tmp_path / "models", RenderOptions(profile="embedded"))
    return Repository(tmp_path / "models", triton, "token")


@pytest.fixture
def new(repository: Path, tmp_path: Path) -> Path:
    return variant(repository, tmp_path, "new", 0.5)


def policy(served: Repository, model: str = NETWORK_MODEL) -> list[int]:
    config = read_config(served._config(model))
    return list(config.version_policy.specific.versions)


def raising(error: BaseException, *calls: str) -> Callable[[str], None]:
    def fail(call: str) -> None:
        if call in calls:
            raise error

    return fail


def test_a_server_that_ends_after_the_switch_comes_back_with_the_new_version_alone(
    served: Repository, triton: Triton, new: Path
) -> None:
    triton.fail = raising(ConnectionError("it ended"), "index")
    done = served.roll_out(new)
    assert (done.version, done.previous, done.remains) == (2, 1, "it ended")
    assert (policy(served), policy(served, MODEL_NAME)) == ([2], [2])
    assert served.versions() == [1, 2]


def test_what_was_withdrawn_does_not_come_back_where_nothing_could_be_removed(
    served: Repository, new: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.roll_out(new)
    served.roll_back()
    monkeypatch.setattr(Repository, "_keep_only", lambda self, *versions: None)
    served.roll_out(variant(repository, tmp_path, "fix", 0.7))
    assert served.versions() == [1, 2, 3]
    assert served.roll_back().version == 1


def test_a_full_disk_leaves_what_was_served(
    served: Repository, triton: Triton, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = _rollout.write_atomic, OSError(28, "No space left on device")

    def write_once(path: Path, data: bytes) -> None:
        if served._version(2).is_dir() and policy(served) == [1, 2]:
            raise full
        write(path, data)

    monkeypatch.setattr(_rollout, "write_atomic", write_once)
    with pytest.raises(RolloutError, match=r"version 2 was not put in place.*No space left"):
        served.roll_out(new)
    assert served.versions() == [1]
    assert (policy(served), served.current()) == ([], 1)


def test_an_interrupted_one_leaves_what_was_served(
    served: Repository, triton: Triton, new: Path
) -> None:
    triton.fail = raising(KeyboardInterrupt(), "infer")
    with pytest.raises(KeyboardInterrupt):
        served.roll_out(new)
    assert (served.versions(), policy(served), served.current()) == ([1], [], 1)


def test_what_is_served_already_is_not_rolled_out_again(served: Repository, new: Path) -> None:
    served.roll_out(new)
    with pytest.raises(RolloutError, match="what version 2 serves already"):
        served.roll_out(new)
    assert served.roll_back().version == 1


def test_a_damaged_graph_of_another_precision_is_refused(served: Repository, new: Path) -> None:
    graph = new / NETWORK_MODEL / "1" / "model.int8.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 0xFF
    graph.write_bytes(data)
    with pytest.raises(RolloutError, match=r"model\.int8\.onnx is not what SHA256SUMS names"):
        served.roll_out(new)
    assert served.versions() == [1]


def test_what_is_checked_is_what_is_served(
    served: Repository, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = new / NETWORK_MODEL / "1" / "model.onnx"
    wanted, check = graph.read_bytes(), Repository._check

    def exported_meanwhile(self: Repository, source: Path) -> Any:
        found = check(self, source)
        graph.write_bytes(b"of another export")
        return found

    monkeypatch.setattr(Repository, "_check", exported_meanwhile)
    served.roll_out(new)
    assert (served._version(2) / "model.onnx").read_bytes() == wanted


def test_of_a_repository_that_nobody_may_write_no_copy_stays_for_ever(
    served: Repository, new: Path
) -> None:
    folder = new / NETWORK_MODEL / "1"
    folder.chmod(0o555)
    try:
        served.roll_out(new)
    finally:
        folder.chmod(0o755)
    assert os.stat(served._version(2)).st_mode & 0o200
    shutil.rmtree(served._version(2))


def test_the_configs_say_how_many_stubs_there_are(repository: Path, tmp_path: Path) -> None:
    instances = {"nima_preprocess": 3, "nima_network": 2}
    options = RenderOptions(profile="embedded", instances=instances)
    render(repository, tmp_path / "models", options)
    assert python_instances(tmp_path / "models") == 5
