"""`nima evaluate` and the demo: files, figures and pages from a real (small) network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from nima_client.preprocess import PreprocessSpec
from nima_training import metrics, pages
from nima_training.checkpoint import load_checkpoint, reference_quantiles, save_checkpoint
from nima_training.cli.evaluate import app as evaluate_app
from nima_training.data.manifest import build_manifest
from nima_training.data.sources import PROBABILITIES, read_own
from nima_training.demo import MARKER, take_folder
from nima_training.demo import app as demo_app
from nima_training.evaluate import by_label, evaluate
from nima_training.inference import predict_files
from nima_training.models import create_model

MakeSet = Callable[[Path, int], tuple[Path, Path]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("mobilenet_v3_small", "none", 0.0).eval()
    with torch.no_grad():  # spread the scores, as an untrained head barely does
        for parameter in model.classifier.parameters():  # type: ignore[union-attr]
            parameter.mul_(8)
    return save_checkpoint(
        tmp_path_factory.mktemp("c") / "tiny",
        model,
        {
            "name": "<tiny & co>", "backbone": "mobilenet_v3_small", "dropout": 0.0,
            "preprocessing": PreprocessSpec(resize_size=64, crop_size=64).to_dict(),
            "reference": {"set": "x", "quantiles": reference_quantiles(np.arange(9.0))},
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "is broken: its weights classifier."),
        # Finite weights, whose sum is not.
        (3e38, "the checkpoint <tiny & co> is broken: its scores of 3 of 3 photos are not finite"),
    ],
)
def test_evaluate_says_that_the_checkpoint_is_broken(
    value: float, told: str, checkpoint: Path, tmp_path: Path, make_set: MakeSet
) -> None:
    photos, labels = make_set(tmp_path, 3)
    manifest = tmp_path / "m.parquet"
    build_manifest(read_own(labels), photos, manifest, fractions={"test": 1.0, "train": 0.0})
    loaded = load_checkpoint(checkpoint)
    with torch.no_grad():
        for parameter in loaded.model.classifier.parameters():  # type: ignore[union-attr]
            parameter.fill_(value)
    broken = save_checkpoint(tmp_path / "broken", loaded.model, loaded.meta)
    arguments = [broken, "--manifest", manifest, "--photos", photos, "--out", tmp_path / "out"]
    result = CliRunner().invoke(evaluate_app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert told in result.output
    assert not (tmp_path / "out").exists()


def test_evaluate_writes_figures_table_and_page(
    checkpoint: Path, tmp_path: Path, make_set: MakeSet, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, labels = make_set(tmp_path, 44)
    manifest = tmp_path / "m.parquet"
    styles = {f"photo{i:03d}": ["HDR"] if i % 2 else ["Macro", "HDR"] for i in range(44)}
    build_manifest(
        read_own(labels), photos, manifest, styles=styles, fractions={"test": 1.0, "train": 0.0}
    )
    (photos / "photo002.png").write_bytes(b"gone bad since")
    arguments = [
        str(checkpoint), "--manifest", str(manifest), "--photos", str(photos), "--out",
        str(tmp_path / "out"), "--bootstrap", "50",
    ]  # fmt: skip
    evaluate_app(arguments, standalone_mode=False)
    assert "skipped photo002" in capsys.readouterr().err
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    table = pd.read_parquet(tmp_path / "out/predictions.parquet")
    assert result["photos"] == len(table) == 43
    predicted = table[[f"predicted_{name}" for name in PROBABILITIES]].to_numpy()
    true = table[[f"true_{name}" for name in PROBABILITIES]].to_numpy()
    np.testing.assert_allclose(predicted.sum(1), 1, atol=1e-6)
    again = metrics.evaluate(predicted, true)
    for name, entry in result["overall"].items():
        assert entry["value"] == pytest.approx(again[name]["value"], abs=1e-9)
        assert entry["low"] <= entry["high"]
    assert result["styles"]["HDR"]["photos"] == 43
    assert result["styles"]["Macro"]["photos"] == 21
    page = (tmp_path / "out/report.html").read_text()
    assert "&lt;tiny &amp; co&gt;" in page
    assert "<tiny" not in page
    assert page.count("data:image/jpeg;base64,") == 18
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    # The same photo always gets the same score.
    first = (tmp_path / "out/metrics.json").read_bytes()
    evaluate_app(arguments, standalone_mode=False)
    assert (tmp_path / "out/metrics.json").read_bytes() == first


def test_a_photo_has_one_score_whatever_its_company(
    checkpoint: Path, tmp_path: Path, make_set: MakeSet
) -> None:
    photos, _ = make_set(tmp_path, 9)
    loaded = load_checkpoint(checkpoint)
    paths = sorted(photos.iterdir())
    together, good, failures = predict_files(loaded.model, paths, loaded.spec, batch=9)
    alone = torch.cat([predict_files(loaded.model, [p], loaded.spec)[0] for p in paths])
    assert good == list(range(9))
    assert not failures
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    paths[4].write_bytes(b"not a photo")
    threaded, good, failures = predict_files(loaded.model, paths, loaded.spec, 4, workers=3)
    assert good == [0, 1, 2, 3, 5, 6, 7, 8]
    assert list(failures) == [4]
    torch.testing.assert_close(threaded, together[good], atol=1e-5, rtol=0)


def test_small_groups_are_left_out() -> None:
    p = np.full((25, 10), 0.1)
    groups = by_label([["often", "rare"] if i < 5 else ["often"] for i in range(25)], p, p)
    assert list(groups) == ["often"]
    assert by_label(None, p, p) == {}


def test_a_photo_counts_once_for_a_label_it_has_twice() -> None:
    p = np.full((25, 10), 0.1)
    assert by_label([["twice", "twice"]] * 25, p, p)["twice"]["photos"] == 25
    assert by_label([["rare", "rare"] if i < 15 else [] for i in range(25)], p, p) == {}


def test_photos_without_labels_belong_to_no_group() -> None:
    p = np.full((30, 10), 0.1)  # rows of a manifest without tags, added by hand
    assert by_label([*[["often"]] * 20, None, *[float("nan")] * 9], p, p)["often"]["photos"] == 20


def test_an_empty_split_is_refused(
    checkpoint: Path, tmp_path: Path, make_set: MakeSet, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, labels = make_set(tmp_path, 6)
    build_manifest(read_own(labels), photos, tmp_path / "m.parquet", fractions={"train": 1.0})
    from click.exceptions import Exit

    with pytest.raises((SystemExit, Exit)):
        evaluate_app(
            [str(checkpoint), "--manifest", str(tmp_path / "m.parquet"), "--photos", str(photos),
             "--out", str(tmp_path / "o")],
            standalone_mode=True,
        )  # fmt: skip
    assert "no photo in the split 'test'; it has train\n" in capsys.readouterr().err


def test_all_photos_of_a_set_are_scored(
    checkpoint: Path, tmp_path: Path, make_set: MakeSet
) -> None:
    photos, labels = make_set(tmp_path, 6)
    manifest = tmp_path / "m.parquet"
    build_manifest(read_own(labels), photos, manifest)
    loaded = load_checkpoint(checkpoint)
    result = evaluate(loaded, manifest, photos, tmp_path / "o", "all", bootstrap=0)
    assert (result["photos"], result["split"]) == (6, "all")


def test_a_device_that_is_not_there_is_one_line(
    checkpoint: Path, tmp_path: Path, make_set: MakeSet, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, labels = make_set(tmp_path, 6)
    build_manifest(read_own(labels), photos, tmp_path / "m.parquet", fractions={"test": 1.0})
    with pytest.raises(SystemExit):
        evaluate_app(
            [str(checkpoint), "--manifest", str(tmp_path / "m.parquet"), "--photos", str(photos),
             "--out", str(tmp_path / "o"), "--device", "abacus"],
            standalone_mode=True,
        )  # fmt: skip
    assert "cannot run on the device 'abacus'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_demo_keeps_its_hands_off_files_of_others(
    tmp_path: Path, make_set: MakeSet, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, _ = make_set(tmp_path, 3)
    before = sorted(path.name for path in photos.iterdir())
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / MARKER).touch()
    shutil.copytree(photos, ours / "photos")
    for source, out in (
        (photos, tmp_path),
        (photos, photos / "photo000.png"),
        (ours / "photos", ours),
    ):
        with pytest.raises(SystemExit) as stopped:
            demo_app([str(source), "--out", str(out)])
        assert stopped.value.code == 2
        text = capsys.readouterr().err
        assert "choose another --out" in text
        assert text.count("\n") == 1
        assert sorted(path.name for path in source.iterdir()) == before
    (ours / "run").mkdir()
    take_folder(ours, photos)
    assert [path.name for path in ours.iterdir()] == [MARKER]


def test_the_letters_of_a_page_stand_out_from_both_its_grounds() -> None:
    """Contrast of WCAG 2.2 (1.4.3): 4.5 at least."""

    def luminance(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                  for c in (red, green, blue)]  # fmt: skip
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", pages.TEMPLATE))
    for ground in (colours["ground"], "#ffffff"):
        for letters in ("ink", "soft", "blue"):
            contrast = (luminance(ground) + 0.05) / (luminance(colours[letters]) + 0.05)
            assert contrast >= 4.5, (letters, ground)
