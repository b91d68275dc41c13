"""``nima analyse``: how the score moves when one thing about a photo changes.

The article's experiment, controlled: each photo is changed by one distortion at a time, at several
strengths (:mod:`nima_training.distort`), and scored; means and spreads are plotted against the
strength with intervals over photos. Scores come from a checkpoint or from a running server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from nima_client._connection import TLS
from nima_client._files import check_output_folder
from nima_client._names import display_name
from nima_client._os_errors import reason
from nima_client.preprocess import (
    DEFAULT_LIMITS,
    ImageRejected,
    PreprocessSpec,
    decode,
    to_pixels,
)
from nima_training import metrics, pages, plots
from nima_training.checkpoint import Checkpoint
from nima_training.distort import DISTORTIONS, distort
from nima_training.files import write_json, write_parquet
from nima_training.inference import predict

Scorer = Callable[[Sequence[Image.Image]], np.ndarray]
"""RGB images to distributions ``[N, 10]``."""

WORKING_SIDE = 512
CLEAN = "clean"
SHOWN = 12
"""Photos of the clear-against-blurry table."""


def checkpoint_scorer(checkpoint: Checkpoint) -> Scorer:
    """Score with a checkpoint in this process."""

    def score(images: Sequence[Image.Image]) -> np.ndarray:
        pixels = np.stack([to_pixels(image, checkpoint.spec) for image in images])
        return predict(checkpoint.model, pixels, checkpoint.spec).double().numpy()

    return score


@contextmanager
def server_scorer(
    url: str, tls: TLS | None = None, headers: Mapping[str, str] | None = None
) -> Iterator[Scorer]:
    """Score with the server at a gRPC address, through :mod:`nima_client`.

    Raises:
        nima_client.NimaError: it cannot be reached, or is no server of this contract.
        OSError: a file of ``tls`` cannot be read.
    """
    from nima_client import NimaClient

    with NimaClient(url, tls=tls, headers=headers) as client:
        client.score([Image.new("RGB", (64, 64))])  # a wrong address is told before any photo

        def score(images: Sequence[Image.Image]) -> np.ndarray:
            return np.array([result.distribution for result in client.score(list(images))])

        yield score


def open_working_copy(path: Path) -> Image.Image:
    """The photo as served, its longer side at most 512 pixels: distortions act on this copy.

    A full-size photo would lose most of a fine distortion to the resize before the network.
    """
    spec = PreprocessSpec(resize_size=WORKING_SIDE, crop_size=WORKING_SIDE)
    image = decode(path.read_bytes(), spec, DEFAULT_LIMITS)
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BILINEAR)
    return image


def analyse(
    score: Scorer,
    paths: Sequence[Path],
    out: Path,
    source: str,
    kinds: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Distort, score, and write ``scores.parquet``, ``analysis.json`` and ``analysis.html``.

    Args:
        score: where scores come from.
        paths: photos; unreadable ones are left out and listed.
        out: folder to write.
        source: named on the page.
        kinds: keys of :data:`nima_training.distort.DISTORTIONS`; None takes all.
        progress: called with each photo's name.

    Raises:
        ValueError: unknown kind, or no photo is readable.
        OSError: ``out`` cannot be written into.
    """
    check_output_folder(out)
    chosen = list(dict.fromkeys(kinds)) if kinds else list(DISTORTIONS)
    if unknown := [kind for kind in chosen if kind not in DISTORTIONS]:
        raise ValueError(f"unknown distortions {unknown}; known: {', '.join(DISTORTIONS)}")
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    by_name = {display_name(path.name): path for path in paths}
    for number, (name, path) in enumerate(by_name.items()):
        try:
            image = open_working_copy(path)
        except (ImageRejected, OSError) as error:
            unreadable[name] = reason(error)
            continue
        progress(name)
        cases = [(CLEAN, 0.0)] + [(k, s) for k in chosen for s in DISTORTIONS[k].levels]
        images = [
            image
            if kind == CLEAN
            else distort(image, kind, strength, np.random.default_rng(number))
            for kind, strength in cases
        ]
        means, stds = metrics.moments(score(images))
        rows += [
            {"photo": name, "kind": kind, "strength": strength, "mean": mean, "std": std}
            for (kind, strength), mean, std in zip(cases, means, stds, strict=True)
        ]
    if not rows:
        raise ValueError(f"none of the {len(paths)} photos is readable")
    table = pd.DataFrame(rows)
    result = {
        "source": source,
        "photos": int(table["photo"].nunique()),
        "unreadable": unreadable,
        "kinds": {kind: summarise(table, kind) for kind in chosen},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_parquet(out / "scores.parquet", table)
    write_json(out / "analysis.json", result)
    _page(out / "analysis.html", result, table, by_name)
    return result


def summarise(table: pd.DataFrame, kind: str) -> dict[str, Any]:
    """Of one kind: mean and spread by strength, and how many photos fall.

    ``change`` is the mean over photos of score minus the clean photo's score, with its 95 %
    bootstrap interval over photos.
    ``falls`` is the share of photos whose score falls with strength: their Spearman correlation of
    strength (0 being the clean photo) and score is negative. ``falls_at_strongest`` compares the
    strongest level with the clean photo only. Both are given for harmful kinds.
    """
    clean = table[table["kind"] == CLEAN].set_index("photo")["mean"]
    own = table[table["kind"] == kind]
    levels = []
    for strength, group in own.groupby("strength"):
        change = (group.set_index("photo")["mean"] - clean).to_numpy(np.float64)
        low, high = metrics.mean_interval(change)
        levels.append(
            {
                "strength": float(strength),  # type: ignore[arg-type]
                "mean": float(group["mean"].mean()),
                "std": float(group["std"].mean()),
                "change": float(change.mean()),
                "change_low": float(low),
                "change_high": float(high),
                "fell": float((change < 0).mean()),
            }
        )
    summary: dict[str, Any] = {"unit": DISTORTIONS[kind].unit, "levels": levels}
    if DISTORTIONS[kind].harmful:
        wide = own.pivot(index="photo", columns="strength", values="mean").sort_index(axis=1)
        wide.insert(0, 0.0, clean)
        strengths = np.array(wide.columns, dtype=np.float64)
        correlations = [metrics.spearman(strengths, row) for row in wide.to_numpy(np.float64)]
        summary["falls"] = float(np.mean(np.array(correlations) < 0))
        summary["falls_at_strongest"] = levels[-1]["fell"]
    return summary


def _page(path: Path, result: dict[str, Any], table: pd.DataFrame, photos: dict[str, Path]) -> None:
    clean = table[table["kind"] == CLEAN]
    sections = []
    for kind, summary in result["kinds"].items():
        own = table[table["kind"] == kind]
        figures = []
        for column in ("mean", "std"):
            wide = own.pivot(index="strength", columns="photo", values=column).sort_index()
            figures.append(
                pages.plot(
                    f"{column} of the ratings with its 95 % interval; dashed: clean photos",
                    plots.against_strength(
                        wide.index.tolist(), wide.to_numpy(np.float64), summary["unit"], column,
                        float(clean[column].mean()),
                    ),
                )
            )  # fmt: skip
        text = ""
        if "falls" in summary:
            text = (
                f"The score falls with strength for {summary['falls']:.0%} of the photos; at the "
                f"strongest {summary['falls_at_strongest']:.0%} score below their clean photo."
            )
        rows = [
            [
                f"{v['strength']:g}", f"{v['mean']:.2f}", f"{v['std']:.2f}", change_text(v),
                f"{v['fell']:.0%}",
            ]
            for v in summary["levels"]
        ]  # fmt: skip
        columns = [summary["unit"], "mean", "std", "change [95 %]", "photos that fell"]
        sections.append(pages.Section(kind.replace("_", " "), text, columns, rows, figures))
    if "gaussian_blur" in result["kinds"]:
        summary = result["kinds"]["gaussian_blur"]
        sections.insert(0, _clear_against_blurry(table, photos, summary["levels"][-2]))
    pages.write_page(
        path,
        "What moves the score",
        f"{result['photos']} photos scored by {result['source']}. One thing is changed at a time, "
        f"on a copy of at most {WORKING_SIDE} pixels; intervals are 95 % bootstraps over photos.",
        sections,
        "Made by nima analyse; the numbers are in analysis.json and scores.parquet beside it.",
    )


def change_text(level: dict[str, float]) -> str:
    """``-0.31 [-0.40, -0.22]``."""
    return f"{level['change']:+.2f} [{level['change_low']:+.2f}, {level['change_high']:+.2f}]"


def _clear_against_blurry(
    table: pd.DataFrame, photos: dict[str, Path], level: dict[str, float]
) -> pages.Section:
    """The article's table: photos clear and blurred, and the change over all of them."""
    strength = level["strength"]
    blur = table[(table["kind"] == "gaussian_blur") & (table["strength"] == strength)]
    blurred = blur.set_index("photo")
    clear = table[table["kind"] == CLEAN].set_index("photo")
    rows = [
        [f"all {len(clear)} photos", f"{clear['mean'].mean():.2f}", f"{blurred['mean'].mean():.2f}",
         change_text(level)]
    ]  # fmt: skip
    figures = []
    for name in list(clear.index)[:SHOWN]:
        a, b = clear.loc[name], blurred.loc[name]
        rows.append(
            [name, f"{a['mean']:.2f} ± {a['std']:.2f}", f"{b['mean']:.2f} ± {b['std']:.2f}",
             f"{b['mean'] - a['mean']:+.2f}"]
        )  # fmt: skip
        image = open_working_copy(photos[name])
        pair = pages.side_by_side(image, distort(image, "gaussian_blur", strength))
        figures.append(
            pages.Picture(f"{name}: {a['mean']:.2f} clear, {b['mean']:.2f} blurred", image=pair)
        )
    text = f"Gaussian blur with a sigma of {strength:g} % of the short side; mean ± std."
    columns = ["photo", "clear", "blurred", "change"]
    return pages.Section("Clear against blurry", text, columns, rows, figures)
