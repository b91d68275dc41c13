"""Fixtures of the whole suite: the shared material, photos in memory, a real tritonserver.

And what may be skipped: with ``NIMA_SKIPS_FAIL`` set, as in CI, any other skip fails the run, so
that no area goes untested unseen.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is loaded: on cores that others use too, OpenMP threads that spin while they wait
# make a small network thirty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]

# What rich and Typer take the shape of their output from; each test sets what it is about.
TERMINAL_VARIABLES = (
    "COLUMNS",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "LINES",
    "NO_COLOR",
    "PY_COLORS",
    "TERMINAL_WIDTH",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
)

# Reasons, as regular expressions, that concern another machine than this one: nothing is missing.
EXPECTED_SKIPS = (
    "no pyspark",
    "no Java",
    "this machine has (a|TensorRT and a) GPU",
    "signatures print as on Python",
    "tasks do not say that they were cancelled",
)
# What `make test` cannot bring everywhere: packages of Debian and rights without root, the vendor's
# libraries, an index that answers, the shared photos. Told in capitals, and no failure.
UNTESTED_HERE = (
    "no shared material",
    "no package index",
    "TensorRT",
    "extra gpu-preprocessing",
    "no promtool",
    "libfaketime",
    "no Chromium",
    "perf_analyzer",
    r"g\+\+",
    "tmpfs|no mount command",
    "may not make devices",
    "only the superuser may become another user",
    "no unshare|network namespaces",
)


def _skips(config: pytest.Config) -> dict[str, str]:
    """Reasons of what was skipped, each with its first place; the expected ones left out."""
    found: dict[str, str] = {}
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", ()) if reporter else ():
        if isinstance(report.longrepr, tuple) and not hasattr(report, "wasxfail"):
            path, line, reason = report.longrepr
            if not re.search("|".join(EXPECTED_SKIPS), reason):
                found.setdefault(reason.removeprefix("Skipped: "), f"{path}:{line}")
    return found


def _surprises(config: pytest.Config) -> dict[str, str]:
    known = re.compile("|".join(UNTESTED_HERE))
    return {r: place for r, place in _skips(config).items() if not known.search(r)}


def pytest_sessionstart() -> None:
    """Make what is tested the same on any terminal, on any CI service, and behind any proxy.

    Here pytest has taken the colours of its own output from these variables already, and no test
    has loaded what reads them.
    """
    for name in TERMINAL_VARIABLES:
        os.environ.pop(name, None)
    os.environ["TERM"] = "xterm"
    # Some tests ask their servers without the client's code, which passes a proxy by itself.
    elsewhere = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = ",".join(filter(None, (elsewhere, "127.0.0.1", "localhost")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped what it should not have."""
    strict = os.environ.get("NIMA_SKIPS_FAIL")
    if strict and session.exitstatus == pytest.ExitCode.OK and _surprises(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name what was not tested here, whichever way the run ends."""
    surprises = _surprises(config)
    for reason, place in _skips(config).items():
        unexpected = " (not in the lists of tests/conftest.py)" if reason in surprises else ""
        terminalreporter.write_line(
            f"NOT TESTED HERE{unexpected}: {place}: {reason}", yellow=True, bold=True
        )


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared photos and published weights; skips where it is absent."""
    path = Path(os.environ.get("NIMA_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "photos").is_dir():
        pytest.skip(f"no shared material at {path} (set NIMA_SHARED)")
    return path


@pytest.fixture(scope="session")
def shared_photos(shared_dir: Path) -> Path:
    """``photos/`` of the shared material, with train, bench and edge below."""
    return shared_dir / "photos"


@pytest.fixture(scope="session")
def skimage_photos() -> list[Path]:
    """Photographs that ship with scikit-image: in every environment of the tests."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "retina.jpg")
    return [folder / name for name in names]


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Make an image file in memory: ``encode("JPEG", (width, height), seed=0, **save_options)``."""

    def make(
        kind: str = "JPEG",
        size: tuple[int, int] = (320, 240),
        mode: str = "RGB",
        seed: int = 0,
        **options: object,
    ) -> bytes:
        random = np.random.default_rng(seed)
        # Smooth, so that lossy formats stay close to the original.
        small = random.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def triton() -> Iterator[object]:
    """One real tritonserver with the bundled model, for every test that does no harm to it."""
    from nima_build.server import EmbeddedServer

    with EmbeddedServer() as server:
        yield server
        # A clean end takes seconds, and has tests of its own.
        server.end_processes(grace=0)


@pytest.fixture(scope="session")
def infer() -> Callable[[str, list[bytes]], dict[str, np.ndarray]]:
    """Score through bare tritonclient, without the SDK: ``infer(url, [file bytes, …])``."""
    import tritonclient.grpc as triton_grpc

    def call(url: str, images: list[bytes]) -> dict[str, np.ndarray]:
        tensor = triton_grpc.InferInput("IMAGE", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
        with triton_grpc.InferenceServerClient(url) as client:
            answer = client.infer("nima", [tensor], client_timeout=30)
        return {name: answer.as_numpy(name) for name in ("DISTRIBUTION", "MEAN", "STD")}

    return call


@pytest.fixture
def loopback_only() -> list[str]:
    """Command prefix that runs a program in a namespace whose only interface is ``lo``."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("no unshare or no ip here (Debian: util-linux, iproute2)")
    prefix = [
        "unshare",
        "--net",
        "--map-root-user",
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "-",
    ]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("network namespaces are not allowed here")
    return prefix
