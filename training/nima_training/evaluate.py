"""``nima evaluate``: predictions against true distributions, as figures and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nima_client._files import check_output_folder
from nima_training import metrics, pages, plots
from nima_training.checkpoint import Checkpoint
from nima_training.data.dataset import read_manifest
from nima_training.data.sources import PROBABILITIES, labels_of
from nima_training.files import write_json, write_parquet
from nima_training.inference import predict_files

ALL = "all"
"""In the place of a split: every photo, as of a set that nothing was trained on."""
MIN_GROUP = 20
SHOWN = 6
MAX_ROWS = 40
TITLES = {
    "emd_r1": "EMD r=1", "emd_r2": "EMD r=2", "mae_mean": "MAE mean", "mae_std": "MAE std",
    "accuracy": "accuracy at 5", "pearson_mean": "Pearson mean", "spearman_mean": "Spearman mean",
    "kendall_mean": "Kendall mean", "pearson_std": "Pearson std", "spearman_std": "Spearman std",
    "kendall_std": "Kendall std",
}  # fmt: skip


def evaluate(
    checkpoint: Checkpoint,
    manifest: Path,
    photos: Path,
    out: Path,
    split: str = "test",
    bootstrap: int = 1000,
    device: str = "cpu",
    workers: int = 1,
) -> dict[str, Any]:
    """Score a split; write ``metrics.json``, ``predictions.parquet`` and ``report.html``.

    Args:
        checkpoint: what is evaluated; moved to ``device``.
        manifest: Parquet of ``nima prepare``.
        photos: folder that the manifest's paths start at.
        out: folder for the three files.
        split: rows of the manifest to score; ``"all"`` takes every one.
        bootstrap: resamples behind each interval.
        device: a torch device that runs the network.
        workers: threads that decode photos.

    Raises:
        ValueError: the manifest cannot be read, the split is empty, none of its photos is
            readable, or the checkpoint's scores are not finite.
        OSError: ``out`` cannot be written into.
    """
    check_output_folder(out)
    frame = read_manifest(manifest)
    parts = sorted(frame["split"].astype(str).unique())
    if split != ALL:
        frame = frame[frame["split"] == split].reset_index(drop=True)
    if frame.empty:
        raise ValueError(
            f"{manifest} has no photo in the split {split!r}; it has {', '.join(parts) or 'none'}"
        )
    paths = [photos / path for path in frame["path"]]
    model = _on_device(checkpoint.model, device)
    tensor, good, failures = predict_files(model, paths, checkpoint.spec, workers=workers)
    if not good:
        raise ValueError(
            f"none of the {len(paths)} photos is readable, e.g. {paths[0]}: {failures[0]}"
        )
    unreadable = {str(frame["image_id"][index]): reason for index, reason in failures.items()}
    frame, paths = frame.iloc[good].reset_index(drop=True), [paths[i] for i in good]
    predicted = tensor.double().numpy()
    if not (scored := np.isfinite(predicted).all(axis=1)).all():
        raise ValueError(
            f"the checkpoint {checkpoint.meta['name']} is broken: its scores of "
            f"{int((~scored).sum())} of {len(paths)} photos are not finite, e.g. of "
            f"{paths[int(np.argmin(scored))]}"
        )
    true = frame[PROBABILITIES].to_numpy(np.float64)
    result: dict[str, Any] = {
        "checkpoint": checkpoint.meta["name"],
        "weights_sha256": checkpoint.meta["weights_sha256"],
        "manifest": manifest.name,
        "split": split,
        "photos": len(frame),
        "unreadable": unreadable,
        "overall": metrics.evaluate(predicted, true, bootstrap),
        "styles": by_label(frame.get("styles"), predicted, true, bootstrap // 5),
        "tags": by_label(frame.get("tags"), predicted, true, bootstrap // 5),
    }
    out.mkdir(parents=True, exist_ok=True)
    table = predictions_table(frame, predicted, true)
    write_parquet(out / "predictions.parquet", table)
    write_json(out / "metrics.json", result)
    _page(out / "report.html", result, paths, predicted, true, table)
    return result


def _on_device(model: nn.Module, device: str) -> nn.Module:
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # a CPU build of torch asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot run on the device {device!r}: {reason}") from error


def by_label(
    labels: Sequence[object] | pd.Series | None,
    predicted: np.ndarray,
    true: np.ndarray,
    bootstrap: int = 0,
) -> dict[str, Any]:
    """Metrics of the photos that carry each label; labels on fewer than 20 photos are left out."""
    if labels is None:
        return {}
    members: dict[str, list[int]] = {}
    for row, names in enumerate(labels):
        for name in dict.fromkeys(labels_of(names)):  # a photo counts once, however often it has it
            members.setdefault(name, []).append(row)
    return {
        name: {
            "photos": len(rows), **metrics.evaluate(predicted[rows], true[rows], bootstrap)
        }
        for name, rows in sorted(members.items()) if len(rows) >= MIN_GROUP
    }  # fmt: skip


def predictions_table(frame: pd.DataFrame, predicted: np.ndarray, true: np.ndarray) -> pd.DataFrame:
    """One row a photo: predicted and true distribution, moments and EMD."""
    table = frame[["image_id", "path"]].copy()
    for index, name in enumerate(PROBABILITIES):
        table[f"predicted_{name}"] = predicted[:, index]
        table[f"true_{name}"] = true[:, index]
    table["predicted_mean"], table["predicted_std"] = metrics.moments(predicted)
    table["true_mean"], table["true_std"] = metrics.moments(true)
    table["emd_r1"], table["emd_r2"] = (
        metrics.emd(predicted, true, 1),
        metrics.emd(predicted, true, 2),
    )
    return table


def _interval(entry: dict[str, float | None]) -> str:
    if entry["value"] is None:
        return "undefined"
    text = f"{entry['value']:.3f}"
    if entry.get("low") is not None:
        text += f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return text


def _group_section(title: str, groups: dict[str, Any]) -> pages.Section:
    names = ["emd_r2", "spearman_mean", "accuracy", "mae_mean"]
    # AVA has 1,397 challenges: the page shows the largest groups, metrics.json has all.
    largest = sorted(groups.items(), key=lambda item: -item[1]["photos"])[:MAX_ROWS]
    rows = [
        [name, str(entry["photos"]), *[_interval(entry[metric]) for metric in names]]
        for name, entry in largest
    ]
    text = "" if rows else f"No label is on {MIN_GROUP} photos or more."
    if len(groups) > MAX_ROWS:
        text = f"The {MAX_ROWS} largest of {len(groups)} groups."
    columns = ["label", "photos", *[TITLES[metric] for metric in names]]
    return pages.Section(title, text, columns, rows)


def _page(
    path: Path,
    result: dict[str, Any],
    paths: list[Path],
    predicted: np.ndarray,
    true: np.ndarray,
    table: pd.DataFrame,
) -> None:
    order = np.argsort(table["emd_r2"].to_numpy(), kind="stable")
    middle = max(0, len(order) // 2 - SHOWN // 2)

    def shown(rows: np.ndarray) -> list[pages.Picture]:
        return [_photo(paths[r], predicted[r], true[r], table.iloc[r]) for r in rows]

    def pick(name: str) -> np.ndarray:
        return table[name].to_numpy()

    overall = [[TITLES[name], _interval(result["overall"][name])] for name in TITLES]
    figures = [
        pages.plot("Means", plots.scatter(pick("true_mean"), pick("predicted_mean"), "mean")),
        pages.plot("Spreads", plots.scatter(pick("true_std"), pick("predicted_std"), "std")),
        pages.plot("Calibration", plots.calibration(pick("true_mean"), pick("predicted_mean"))),
        pages.plot(
            "Scores",
            plots.histogram({"true": pick("true_mean"), "predicted": pick("predicted_mean")}),
        ),
    ]
    pages.write_page(
        path,
        f"{result['checkpoint']} on {result['manifest']} ({result['split']})",
        f"{result['photos']} photos, weights {result['weights_sha256'][:12]}; intervals are 95 % "
        f"bootstraps over photos; grey is true, blue predicted.",
        [
            pages.Section(
                "Figures", columns=["metric", "value [95 %]"], rows=overall, figures=figures
            ),
            _group_section("Styles", result["styles"]),
            _group_section("Tags", result["tags"]),
            pages.Section("Closest to the raters", figures=shown(order[:SHOWN])),
            pages.Section("Median photos", figures=shown(order[middle : middle + SHOWN])),
            pages.Section("Furthest from the raters", figures=shown(order[::-1][:SHOWN])),
        ],
        "Made by nima evaluate; the numbers are in metrics.json and predictions.parquet beside it.",
    )


def _photo(path: Path, predicted: np.ndarray, true: np.ndarray, row: pd.Series) -> pages.Picture:
    caption = (
        f"{row['image_id']}: predicted {row['predicted_mean']:.2f} ± {row['predicted_std']:.2f}, "
        f"true {row['true_mean']:.2f} ± {row['true_std']:.2f}, EMD r=2 {row['emd_r2']:.3f}"
    )
    bars = plots.distribution_bars(predicted, true)
    return pages.Picture(caption, pages.plot("", bars).svg, pages.thumbnail(path))
