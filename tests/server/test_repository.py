"""Every config obeys Triton's schema and the contract; rendering changes what it should."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nima_build.metadata import ArtefactError, ModelMetadata
from nima_build.rendering import RenderOptions, render
from nima_build.repository import (
    MARKER,
    MODELS,
    config_path,
    default_repository,
    load_metadata,
    read_config,
    write_parameters,
)
from nima_client import contract
from nima_client.contract import PROFILES, ServedModel
from nima_client.preprocess import Limits, PreprocessSpec

SOURCE = default_repository()


def parameters(config) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("model", MODELS)
def test_configs_obey_the_schema(profile, model):
    config = read_config(config_path(SOURCE, model, profile))
    assert config.name == model
    assert config.max_batch_size == contract.MAX_BATCH_SIZE


@pytest.mark.parametrize("profile", PROFILES)
def test_the_ensemble_keeps_the_contract(profile):
    config = read_config(config_path(SOURCE, contract.MODEL_NAME, profile))
    assert [i.name for i in config.input] == [contract.INPUT_IMAGE]
    shapes = {o.name: list(o.dims) for o in config.output}
    assert shapes == {
        contract.OUTPUT_DISTRIBUTION: [contract.NUM_RATINGS],
        contract.OUTPUT_MEAN: [1],
        contract.OUTPUT_STD: [1],
    }
    served = ServedModel.from_parameters(parameters(config))
    assert served == load_metadata(SOURCE).served()


@pytest.mark.parametrize("profile", PROFILES)
def test_the_steps_agree_on_the_pixels(profile):
    side = load_metadata(SOURCE).spec.crop_size
    first = read_config(config_path(SOURCE, contract.PREPROCESS_MODEL, profile))
    second = read_config(config_path(SOURCE, contract.NETWORK_MODEL, profile))
    assert list(first.output[0].dims) == list(second.input[0].dims) == [side, side, 3]
    assert first.output[0].data_type == second.input[0].data_type


@pytest.mark.parametrize("profile", PROFILES)
def test_the_first_step_has_a_bounded_queue(profile):
    config = read_config(config_path(SOURCE, contract.PREPROCESS_MODEL, profile))
    assert 0 < config.dynamic_batching.default_queue_policy.max_queue_size <= 4096


def test_rendering_sets_instances_limits_and_facts(tmp_path):
    options = RenderOptions("embedded", {"nima_preprocess": 3, "nima_network": 5}, Limits(111, 222))
    metadata = render(SOURCE, tmp_path, options)
    first = read_config(tmp_path / "nima_preprocess" / "config.pbtxt")
    assert first.instance_group[0].count == 3
    assert read_config(tmp_path / "nima_network" / "config.pbtxt").instance_group[0].count == 5
    facts = parameters(first)
    assert (facts["max_bytes"], facts["max_pixels"]) == ("111", "222")
    assert PreprocessSpec.from_dict(json.loads(facts["preprocessing"])) == metadata.spec
    assert (tmp_path / "nima_network" / "1" / "model.onnx").is_file()
    assert (tmp_path / "nima" / "1").is_dir()


@pytest.mark.parametrize("profile", PROFILES)
def test_clients_are_advised_of_large_requests_where_they_are_faster(tmp_path, profile):
    instances = {} if profile == "embedded-gpu" else {"nima_preprocess": 4, "nima_network": 3}
    render(SOURCE, tmp_path, RenderOptions(profile, instances))
    served = ServedModel.from_parameters(parameters(read_config(tmp_path / "nima/config.pbtxt")))
    wanted = {"embedded": (4, 3), "embedded-gpu": (32, 4)}.get(profile, (1, 1))
    assert (served.request_size, served.instances) == wanted


def copy_of_source(target: Path) -> Path:
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    return target


def test_export_writes_its_facts_into_every_profile_once(tmp_path):
    repository = copy_of_source(tmp_path / "models")
    facts = ModelMetadata(
        name='odd "name"\nwith\\escapes',
        backbone="mobilenet_v2",
        checkpoint_sha256="cd" * 32,
        onnx_sha256="",
        preprocessing=PreprocessSpec(resize_size=256).to_dict(),
        reference_quantiles=tuple(1 + i / 20 for i in range(101)),
    )
    first = {path: path.read_text() for path in write_parameters(repository, facts)}
    assert first == {path: path.read_text() for path in write_parameters(repository, facts)}
    for profile in PROFILES:
        path = config_path(repository, contract.MODEL_NAME, profile)
        assert path.read_text().count(MARKER) == 1
        assert ServedModel.from_parameters(parameters(read_config(path))) == facts.served()


@pytest.mark.parametrize("variables", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_config_is_utf8_whatever_the_locale(tmp_path, variables):
    repository = copy_of_source(tmp_path / "repository")
    path = config_path(repository, contract.NETWORK_MODEL, "embedded")
    text = path.read_text(encoding="utf-8")
    path.write_text(f"# für 写真\n{text}", encoding="utf-8")
    code = "import sys; from nima_build.repository import *; read_config(Path(sys.argv[1]))"
    environment = {**os.environ, **variables}
    subprocess.run([sys.executable, "-c", code, path], env=environment, check=True, timeout=60)
    path.write_text(f"# für\n{text}", encoding="latin-1")
    with pytest.raises(ArtefactError, match="is not UTF-8"):
        read_config(path)


def test_missing_and_broken_files_say_what_to_do(tmp_path):
    repository = copy_of_source(tmp_path / "models")
    with pytest.raises(ArtefactError, match="nima export"):
        render(repository, tmp_path / "out", RenderOptions())
    config = config_path(repository, contract.NETWORK_MODEL, "embedded")
    config.write_text("name: 3 nonsense")
    with pytest.raises(ArtefactError, match=r"embedded\.pbtxt"):
        read_config(config)
    metadata = repository / "nima_network" / "1" / "model.json"
    metadata.write_text("{")
    with pytest.raises(ArtefactError, match="again"):
        load_metadata(repository)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"name": None},
        {"reference_quantiles": [None]},
        {"preprocessing": 3},
    ],
)
def test_facts_of_the_wrong_kind_are_refused(tmp_path, content):
    path = tmp_path / "model.json"
    facts = json.loads((SOURCE / "nima_network" / "1" / "model.json").read_text())
    path.write_text(json.dumps({**facts, **content} if content else content))
    with pytest.raises(ArtefactError, match=r"model\.json is unreadable .* `nima export` again"):
        ModelMetadata.load(path)


def test_a_damaged_artefact_is_refused(tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(SOURCE, repository, ignore=shutil.ignore_patterns("__pycache__"))
    render(repository, tmp_path / "first", RenderOptions())
    onnx = repository / "nima_network" / "1" / "model.onnx"
    damaged = bytearray(onnx.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    onnx.write_bytes(damaged)
    with pytest.raises(ArtefactError, match="SHA256SUMS"):
        render(repository, tmp_path / "second", RenderOptions())
    (repository / "SHA256SUMS").unlink()
    render(repository, tmp_path / "third", RenderOptions())


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="profile"):
        RenderOptions("gpu")
    with pytest.raises(ValueError, match="instance"):
        RenderOptions(instances={"nima_network": 0})
    with pytest.raises(ValueError, match="limits"):
        RenderOptions(limits=Limits(0, 1))
