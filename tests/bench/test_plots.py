"""The plots of ``nima bench`` for people who see fewer colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="plots need the extra bench")

from matplotlib.colors import to_rgb

from nima_build.bench import plots
from nima_build.bench.perf_analyzer import Load
from nima_build.bench.report import Row

# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009: severity 1.0, on linear RGB.
SEEN_BY = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}  # fmt: skip
XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
WHITE = (0.9505, 1.0, 1.089)


def lab(colour: str, seen_by: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """CIELAB of a colour as it looks to somebody."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array(XYZ) @ np.clip(np.array(seen_by) @ linear, 0, 1) / WHITE
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture(scope="module")
def axes():
    load = Load(concurrency=1)
    row = Row(load, 9.0, 8.0, 10.0, 0.9, 1.0, 2.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0, 0, None)
    figure, (latency, stages) = plots.plt.subplots(1, 2)
    plots._latency(latency, [row], [row])
    plots._stages(stages, [row])
    yield latency, stages
    plots.plt.close(figure)


@pytest.mark.parametrize("kind", SEEN_BY)
def test_neither_percentiles_nor_stages_look_alike_to_anybody(axes, kind):
    latency, stages = axes
    bars = [bar.get_facecolor() for bar in stages.patches]
    lines = [line.get_color() for line in latency.get_lines()[:3]]
    assert (len(bars), len(lines)) == (4, 3)
    for some in (bars, lines):
        seen = [lab(colour, SEEN_BY[kind]) for colour in some]
        for first, second in itertools.combinations(seen, 2):
            assert np.linalg.norm(first - second) > 20  # CIE 1976; a plain difference from 10 on


def test_percentiles_can_be_told_without_colours(axes):
    looks = [(line.get_marker(), line.get_linestyle()) for line in axes[0].get_lines()]
    assert len(set(looks)) == 6
