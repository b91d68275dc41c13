"""Every profile's configs: the schema, the contract, what the real tritonserver says of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nima_build.checksums import check_checksums, write_checksums
from nima_build.cpu_profile import main, set_cpu_profile
from nima_build.export import export_to_repository
from nima_build.gpu import find_gpus
from nima_build.metadata import ArtefactError
from nima_build.repository import MODELS, config_path, load_metadata, read_config
from nima_client import NimaClient
from nima_client.contract import (
    INPUT_IMAGE,
    MAX_BATCH_SIZE,
    OUTPUT_DISTRIBUTION,
    OUTPUT_MEAN,
    OUTPUT_STD,
    PIXELS,
    PROFILES,
    ServedModel,
)

TREE = Path(__file__).parents[2] / "model_repository"
STRING, UINT8, FP32 = 13, 2, 11  # DataType of Triton's model_config.proto
OUTPUTS = {OUTPUT_DISTRIBUTION: (FP32, [10]), OUTPUT_MEAN: (FP32, [1]), OUTPUT_STD: (FP32, [1])}


def tensors(entries: Any) -> dict[str, tuple[int, list[int]]]:
    return {entry.name: (entry.data_type, list(entry.dims)) for entry in entries}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("model", MODELS)
def test_config_follows_the_schema_and_the_contract(profile: str, model: str) -> None:
    config = read_config(config_path(TREE, model, profile))
    assert config.name == model
    assert config.max_batch_size == MAX_BATCH_SIZE
    image = (UINT8, [-1]) if profile == "dali" else (STRING, [1])
    pixels = (UINT8, [224, 224, 3])
    wanted = {
        "nima": ({INPUT_IMAGE: image}, OUTPUTS),
        "nima_preprocess": ({INPUT_IMAGE: image}, {PIXELS: pixels}),
        "nima_network": ({PIXELS: pixels}, OUTPUTS),
    }[model]
    assert (tensors(config.input), tensors(config.output)) == wanted


@pytest.mark.parametrize("profile", PROFILES)
def test_waiting_is_bounded_and_only_in_the_first_step(profile: str) -> None:
    first = read_config(config_path(TREE, "nima_preprocess", profile)).dynamic_batching
    assert 0 < first.default_queue_policy.max_queue_size <= 1024
    second = read_config(config_path(TREE, "nima_network", profile)).dynamic_batching
    # A delay beside a limit, and the first step may lose count (docs/scheduling.md).
    assert first.max_queue_delay_microseconds == second.max_queue_delay_microseconds == 0


def test_dali_batches_requests_of_different_length() -> None:
    for model in ("nima", "nima_preprocess"):
        config = read_config(config_path(TREE, model, "dali"))
        assert config.input[0].allow_ragged_batch


def test_configs_are_made_for_the_specification_that_is_served(repository: Path) -> None:
    """PIXELS has the crop size of the model, and every ensemble config carries its facts."""
    for profile in PROFILES:
        config = read_config(config_path(repository, "nima", profile))
        facts = {key: value.string_value for key, value in config.parameters.items()}
        assert ServedModel.from_parameters(facts).checkpoint_name == "random_mobilenet_v2"


def test_another_image_size_reaches_every_config(
    checkpoint: Path, repository: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    smaller = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    meta = json.loads((smaller / "checkpoint.json").read_text())
    meta["preprocessing"] |= {"resize_size": 192, "crop_size": 160}
    (smaller / "checkpoint.json").write_text(json.dumps(meta))
    export_to_repository(smaller, copy)
    for profile in PROFILES:
        preprocess = read_config(config_path(copy, "nima_preprocess", profile))
        network = read_config(config_path(copy, "nima_network", profile))
        assert list(preprocess.output[0].dims) == [160, 160, 3]
        assert list(network.input[0].dims) == [160, 160, 3]
        for warmup in network.model_warmup:
            assert list(warmup.inputs[PIXELS].dims) == [160, 160, 3]
    specification = json.loads((copy / "nima_preprocess/1/preprocessing.json").read_text())
    assert (specification["resize_size"], specification["crop_size"]) == (192, 160)
    check_checksums(copy)


def test_names_in_any_script_reach_python_and_triton(
    checkpoint: Path, repository: Path, tmp_path: Path, tritonserver: Any
) -> None:
    name = 'Ü "модель" \\ 笑\U0001f600\x7f'
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    other = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    meta = json.loads((other / "checkpoint.json").read_text())
    meta["name"] = name
    (other / "checkpoint.json").write_text(json.dumps(meta))
    export_to_repository(other, copy)
    config = read_config(config_path(copy, "nima", "embedded"))
    assert config.parameters["checkpoint_name"].string_value == name
    with (
        tritonserver(copy, tmp_path / "run", "embedded") as server,
        NimaClient(server.grpc_url) as client,
    ):
        assert client.model_info().served.checkpoint_name == name, server.log


def test_instances_of_the_cpu_profile_follow_the_machine(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    for images, decoders in ((5, 6), (1, 3)):
        set_cpu_profile(copy, images)
        wanted = {"nima_preprocess": decoders, "nima_network": images}
        for model, count in wanted.items():
            assert read_config(config_path(copy, model, "cpu")).instance_group[0].count == count
    with pytest.raises(ValueError, match="at least 1"):
        set_cpu_profile(copy, 0)


@pytest.mark.parametrize(
    ("variable", "place"), [("NIMA_INSTANCES", 0), ("NIMA_MAX_BYTES", 2), ("NIMA_MAX_PIXELS", 3)]
)
def test_a_setting_that_is_no_number_is_named(
    variable: str, place: int, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["", "", "", ""]
    given[place] = "25e6"
    assert main([str(repository), *given]) == 1
    assert f"{variable} is a whole number, not '25e6'" in capsys.readouterr().err


def test_an_export_reaches_what_the_cpu_profile_wrote(
    checkpoint: Path, repository: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    set_cpu_profile(copy, 2)
    other = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    meta = json.loads((other / "checkpoint.json").read_text())
    meta["name"] = "another"
    meta["preprocessing"] |= {"resize": "shortest", "resize_size": 192, "crop_size": 160}
    (other / "checkpoint.json").write_text(json.dumps(meta))
    export_to_repository(other, copy)
    for _ in range(2):
        preprocess = read_config(config_path(copy, "nima_preprocess", "cpu"))
        told = json.loads(preprocess.parameters["preprocessing"].string_value)
        assert told == load_metadata(copy).spec.to_dict()
        assert list(preprocess.output[0].dims) == [160, 160, 3]
        network = read_config(config_path(copy, "nima_network", "cpu"))
        assert list(network.input[0].dims) == [160, 160, 3]
        for warmup in network.model_warmup:
            assert list(warmup.inputs[PIXELS].dims) == [160, 160, 3]
        ensemble = read_config(config_path(copy, "nima", "cpu"))
        assert ensemble.parameters["checkpoint_name"].string_value == "another"
        set_cpu_profile(copy, 3)


def test_precision_of_the_cpu_profile_is_chosen_and_told(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    with pytest.raises(ArtefactError, match=r"no .*model\.int8\.onnx: run `nima export CHECKPOINT"):
        set_cpu_profile(copy, 2, "int8")
    with pytest.raises(ValueError, match="no precision 'int4'"):
        set_cpu_profile(copy, 2, "int4")
    shutil.copyfile(copy / "nima_network/1/model.onnx", copy / "nima_network/1/model.int8.onnx")
    for precision, graph in (("int8", "model.int8.onnx"), ("fp32", "model.onnx")):
        set_cpu_profile(copy, 2, precision)
        network = read_config(config_path(copy, "nima_network", "cpu"))
        assert network.default_model_filename == graph
        ensemble = read_config(config_path(copy, "nima", "cpu"))
        assert ensemble.parameters["precision"].string_value == precision
        assert "precision" not in read_config(config_path(copy, "nima", "default")).parameters


def test_checksums_notice_every_kind_of_damage(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    assert check_checksums(copy) == 3  # model.onnx, model.json, preprocessing.json
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=copy,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    graph = copy / "nima_network" / "1" / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1])
    with pytest.raises(ArtefactError, match=r"model\.onnx is not what SHA256SUMS names"):
        check_checksums(copy)
    graph.unlink()
    with pytest.raises(ArtefactError, match="is missing"):
        check_checksums(copy)
    graph.write_bytes(content)
    # An engine belongs to this machine and has a manifest of its own.
    for name in ("model.plan", "model.plan.json", "model.pt2", "model.pt2.json", "model.fp16.onnx"):
        (copy / "nima_network" / "1" / name).write_bytes(b"built")
    write_checksums(copy)
    assert check_checksums(copy) == 4
    for content in (b"nonsense\n", b"\xff\xfe"):
        (copy / "SHA256SUMS").write_bytes(content)
        with pytest.raises(ArtefactError, match="unreadable"):
            check_checksums(copy)


@pytest.mark.parametrize("left", ["model.onnx", "model.json", "model.int8.onnx", ""])
def test_a_manifest_that_was_cut_short_vouches_for_nothing(
    repository: Path, tmp_path: Path, left: str
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    shutil.copyfile(copy / "nima_network/1/model.onnx", copy / "nima_network/1/model.int8.onnx")
    write_checksums(copy)
    manifest = copy / "SHA256SUMS"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if left and f"/{left}" not in line))
    for model in ("", "nima_network"):
        with pytest.raises(ArtefactError, match=f"SHA256SUMS does not name .*{left}"):
            check_checksums(copy, model)
    check_checksums(copy, "nima_preprocess")


@pytest.mark.skipif(
    not (TREE / "nima_network" / "1" / "model.json").is_file(),
    reason="no bundled model in this tree",
)
def test_committed_repository_is_whole() -> None:
    assert check_checksums(TREE) >= 3
    for profile in PROFILES:
        config = read_config(config_path(TREE, "nima", profile))
        facts = {key: value.string_value for key, value in config.parameters.items()}
        served = load_metadata(TREE).served()
        assert ServedModel.from_parameters(facts) == ServedModel.from_parameters(
            served.to_parameters()
        )


def model_states(log: str) -> dict[str, str]:
    """Model to its state, from the table tritonserver prints before it serves or gives up."""
    rows = re.findall(r"^\| (nima\w*) +\| \d+ +\| (.*?) *\|$", log, re.MULTILINE)
    return dict(rows)


def no_backend(name: str) -> str:
    return f"UNAVAILABLE: Invalid argument: unable to find backend library for backend '{name}'"


@pytest.mark.parametrize(
    ("profile", "preprocess", "network"),
    [
        # The wheel's server has the Python backend and no other, and here is no GPU.
        ("embedded", "READY", "READY"),
        ("cpu", "READY", no_backend("onnxruntime")),
        ("default", "has kind KIND_GPU but no GPUs are available", no_backend("tensorrt")),
        ("dali", no_backend("dali"), no_backend("tensorrt")),
        (
            "embedded-gpu",
            "has kind KIND_GPU but no GPUs are available",
            "has kind KIND_GPU but no GPUs are available",
        ),
    ],
)
def test_tritonserver_loads_the_profile_as_far_as_its_backends_go(
    tritonserver: Any, repository: Path, tmp_path: Path, profile: str, preprocess: str, network: str
) -> None:
    """A model may fail for its missing backend, or for the missing GPU, and for nothing else."""
    if profile in ("default", "embedded-gpu") and find_gpus():
        pytest.skip("this machine has a GPU: what it says there is another matter")
    with tritonserver(repository, tmp_path, profile) as server:
        states = model_states(server.log)
    assert preprocess in states["nima_preprocess"]
    assert network in states["nima_network"]
    assert set(states) - {"nima"} == {"nima_preprocess", "nima_network"}
    # An ensemble is only looked at when every step is ready.
    assert states.get("nima", "READY") == "READY"
