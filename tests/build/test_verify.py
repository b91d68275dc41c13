"""The parity gate: every stage passes on a good export; a wrong artefact fails it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from nima_build import golden as golden_module
from nima_build import paths
from nima_build import verify as verify_module
from nima_build.cli.verify import app
from nima_build.golden import golden_photos, load_golden
from nima_build.metadata import ArtefactError, ModelMetadata
from nima_build.parity import compare, emd
from nima_build.verify import make_golden, verify
from nima_client._files import sha256_file

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "model_repository" / "nima_network" / "1"
CHECKPOINT = ROOT / "training" / "checkpoints" / "nima_mobilenet"


@pytest.fixture
def network(exported: Path, tmp_path: Path) -> Path:
    """A private copy of the random model's export."""
    return Path(shutil.copytree(exported, tmp_path / "network"))


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return golden_photos()[:3]


def states(report: object) -> dict[str, str]:
    return {stage.stage: stage.status for stage in report.stages}  # type: ignore[attr-defined]


def test_good_export_passes(network: Path, checkpoint: Path, photos: list[Path]) -> None:
    report = verify(network, photos, checkpoint=checkpoint)
    assert report.reference == "pytorch"
    found = {stage.stage: stage for stage in report.stages}
    assert found["onnx-fp32"].status == "pass"
    assert found["onnx-fp32"].mean_difference < 1e-4
    assert found["onnx-fp16"].mean_difference > 0, "equal to the bit: nothing ran in FP16"
    assert found["pytorch-fp16"].mean_difference > 0
    assert found["tensorrt"].status == "skip"
    assert "nima build" in found["tensorrt"].note
    assert found["triton"].status == "skip"


def test_running_triton_is_compared(
    repository: Path, checkpoint: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytriton", reason="needs the extra serve")
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    from nima_build.server import EmbeddedServer, ServerOptions

    network = repository / "nima_network" / "1"
    with EmbeddedServer(ServerOptions(model_repository=repository, instances=1)) as server:
        report = verify(network, photos, checkpoint=checkpoint, url=server.grpc_url)
        url = server.grpc_url
        schemed = verify(network, photos, checkpoint=checkpoint, url=f" grpc://{url} ")
        untold = InferenceServerException("protocol is restricted")
        with monkeypatch.context() as patched:
            patched.setattr(InferenceServerClient, "get_model_config", Mock(side_effect=untold))
            refused = verify(network, photos, checkpoint=checkpoint, url=url)
    (stage,) = [stage for stage in report.stages if stage.stage == "triton"]
    assert stage.status == "pass", stage.note
    assert stage.photos == len(photos)
    assert stage.mean_difference is not None
    assert stage.mean_difference < 1e-4
    assert states(schemed)["triton"] == "pass"
    assert states(refused)["triton"] == "fail"
    gone = verify(network, photos, checkpoint=checkpoint, url=url)
    assert states(gone)["triton"] == "fail"


def test_wrong_weights_fail(network: Path, checkpoint: Path, photos: list[Path]) -> None:
    """A graph that is intact by its hashes but computes something else."""
    model = onnx.load(network / "model.onnx")
    bias = next(t for t in model.graph.initializer if t.name.endswith("classifier.1.bias"))
    values = numpy_helper.to_array(bias).copy()
    values[0] += 0.05
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, network / "model.onnx")
    metadata = json.loads((network / "model.json").read_text())
    metadata["onnx_sha256"] = sha256_file(network / "model.onnx")
    (network / "model.json").write_text(json.dumps(metadata))
    report = verify(network, photos, checkpoint=checkpoint)
    assert states(report)["onnx-fp32"] == "fail"
    assert not report.passed

    names = [str(path) for path in photos]
    arguments = [*names, "--network", str(network), "--checkpoint", str(checkpoint)]
    target = network / "report.json"
    result = CliRunner().invoke(app, [*arguments, "--json", str(target)])
    assert result.exit_code == 1
    assert json.loads(target.read_text())["passed"] is False


def test_graph_that_is_not_the_named_one_is_refused(network: Path, photos: list[Path]) -> None:
    with (network / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtefactError, match="run `nima export` again"):
        verify(network, photos)


def test_without_a_checkpoint_the_graph_is_the_reference(network: Path, photos: list[Path]) -> None:
    report = verify(network, photos)
    assert report.reference == "onnx-fp32"
    assert states(report)["onnx-fp32"] == "skip"


@pytest.mark.parametrize("found", ["another one", "none"])
def test_a_named_checkpoint_that_is_not_the_networks_is_refused(
    found: str, network: Path, photos: list[Path], tmp_path: Path
) -> None:
    """Passed over, it would let an export that failed go by as verified."""
    source = CHECKPOINT if found == "another one" else tmp_path / "nowhere"
    arguments = [str(photos[0]), "--network", str(network), "--checkpoint", str(source)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    why = "exported from another" if found == "another one" else f"{source} is not a checkpoint"
    assert why in result.output
    assert result.output.count("\n") == 1


def test_a_network_of_ones_own_needs_no_bundled_checkpoint(
    repository: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIMA_MODEL_REPOSITORY", str(repository))
    result = CliRunner().invoke(app, [str(photos[0])])
    assert result.exit_code == 0, result.output
    assert "against onnx-fp32" in result.output


def test_a_network_that_the_bundled_checkpoint_only_mentions_is_ones_own(
    repository: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher of its distillation, say."""
    own = ModelMetadata.load(repository / "nima_network" / "1" / "model.json").checkpoint_sha256
    facts = {"weights_sha256": "0" * 64, "training": {"teacher_sha256": own}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(facts))
    monkeypatch.setattr(paths, "BUNDLED_CHECKPOINT", tmp_path)
    monkeypatch.setenv("NIMA_MODEL_REPOSITORY", str(repository))
    result = CliRunner().invoke(app, [str(photos[0])])
    assert result.exit_code == 0, result.output
    assert "against onnx-fp32" in result.output


@pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="no bundled checkpoint in this tree")
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_bundled_checkpoint_that_cannot_be_read_is_told(
    content: str, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = Path(shutil.copytree(CHECKPOINT, tmp_path / "damaged"))
    (damaged / "checkpoint.json").write_text(content)
    monkeypatch.setattr(paths, "BUNDLED_CHECKPOINT", damaged)
    monkeypatch.delenv("NIMA_MODEL_REPOSITORY", raising=False)
    result = CliRunner().invoke(app, [str(photos[0])])
    assert result.exit_code == 1, result.output
    assert str(damaged) in result.output
    assert result.output.count("\n") == 1


@pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="no bundled checkpoint in this tree")
def test_a_damaged_bundled_checkpoint_is_told_and_not_done_without(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = Path(shutil.copytree(CHECKPOINT, tmp_path / "damaged"))
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"0")
    monkeypatch.setattr(paths, "BUNDLED_CHECKPOINT", damaged)
    monkeypatch.delenv("NIMA_MODEL_REPOSITORY", raising=False)
    result = CliRunner().invoke(app, [str(photos[0])])
    assert result.exit_code == 1, result.output
    assert result.output.startswith(f"nima verify: {damaged}")
    assert result.output.count("\n") == 1


def test_golden_scores_notice_a_change(
    network: Path, checkpoint: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = network / "golden.json"
    make_golden(network, photos, checkpoint).save(path)
    monkeypatch.setattr(golden_module.load_golden, "__defaults__", (path,))
    assert states(verify(network, photos, checkpoint=checkpoint))["golden"] == "pass"
    values = json.loads(path.read_text())
    row = values["scores"][1]["distribution"]
    row[0], row[9] = row[0] + 0.001, row[9] - 0.001
    path.write_text(json.dumps(values))
    assert states(verify(network, photos, checkpoint=checkpoint))["golden"] == "fail"
    values["preprocessing_id"] = "0" * 16
    path.write_text(json.dumps(values))
    assert states(verify(network, photos, checkpoint=checkpoint))["golden"] == "fail"


def test_not_finite_scores_fail() -> None:
    flat = np.full((1, 10), 0.1)
    assert compare("onnx-fp32", ["a"], flat, flat * np.nan).status == "fail"
    assert compare("onnx-fp32", ["a"], flat, flat).status == "pass"


def test_emd_is_that_of_the_paper() -> None:
    """All mass one rating further: nine equal cumulative sums and one that differs by 1."""
    first, second = np.zeros((1, 10)), np.zeros((1, 10))
    first[0, 3], second[0, 4] = 1, 1
    assert emd(first, second)[0] == pytest.approx(np.sqrt(1 / 10))


def test_unreadable_photo_is_one_line(network: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    result = CliRunner().invoke(app, [str(text), "--network", str(network)])
    assert result.exit_code == 1
    assert result.output.startswith("nima verify: cannot score")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("wrong", [["--url", "nowhere"], ["--json", "{folder}"]])
def test_a_wrong_address_or_output_is_told_before_the_work(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    monkeypatch.setattr(verify_module, "read_pixels", Mock(side_effect=AssertionError))
    given = [part.format(folder=tmp_path) for part in wrong]
    result = CliRunner().invoke(app, ["--network", str(network), *given])
    assert result.exit_code == 1
    assert result.output.startswith("nima verify: ")
    assert ("no port" if wrong[0] == "--url" else "Is a directory") in result.output


def test_a_name_is_shown_as_it_is(network: Path, photos: list[Path], tmp_path: Path) -> None:
    """Brackets are no style, ":100:" is no emoji, and an escape commands no terminal."""
    photo = Path(shutil.copyfile(photos[0], tmp_path / "[a]:100:\x1bb.png"))
    arguments = [str(photo), "--network", str(network)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "1 photo against" in result.output
    assert "[a]:100:\ufffdb.png" in result.output


@pytest.mark.skipif(not (BUNDLED / "model.json").is_file(), reason="no bundled model in this tree")
def test_bundled_model_passes_against_its_golden_scores() -> None:
    golden = load_golden()
    assert golden is not None, "run `nima verify --update-golden`"
    metadata = ModelMetadata.load(BUNDLED / "model.json")
    assert golden.checkpoint_sha256 == metadata.checkpoint_sha256, "run `make model`"
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0, result.output
    for stage in ("golden", "onnx-fp32", "onnx-fp16", "pytorch-fp16"):
        assert stage in result.output
