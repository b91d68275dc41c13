"""The examples run as they are."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kserve_server import KServeServer

from nima_client import NimaError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
    for number in (0, 1):  # as many cameras name them
        (tmp_path / f"{number}.jpg").rename(tmp_path / f"{number}.JPG")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    return tmp_path


def run(script: str, *arguments: object, url: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "NIMA_URL": url},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script] = module
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> dict[str, tuple[float, float, float]]:
    """Mean, standard deviation and percentile of each photo in a table of ``nima score``."""
    found = re.findall(r"│ (\S+\.png) +│ ([\d.]+) │ ([\d.]+) │ +(\d+) │", text)
    return {name: (float(mean), float(std), float(pct)) for name, mean, std, pct in found}


def test_the_demo_prints_what_the_readme_shows() -> None:
    """Who tries it compares: a table of an earlier model would look like a defect."""
    shown = rows((EXAMPLES.parent / "README.md").read_text(encoding="utf-8"))
    assert len(shown) == 12
    printed = rows(run("demo.py", url=""))
    assert printed.keys() == shown.keys()
    for name, (mean, std, percentile) in shown.items():
        assert printed[name][:2] == pytest.approx((mean, std), abs=0.011), name
        assert printed[name][2] == pytest.approx(percentile, abs=1.01), name


def test_asyncio_pipeline(folder: Path, triton: Any) -> None:
    lines = run("asyncio_pipeline.py", folder, "--keep", 5, url=triton.grpc_url).splitlines()
    assert "skipped" in lines[0]
    assert "broken.jpg" in lines[0]
    means = [float(line.split()[0]) for line in lines[1:]]
    assert len(means) == 5
    assert means == sorted(means, reverse=True)


def test_asyncio_pipeline_without_a_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(paths: Iterable[Path], keep: int) -> list[tuple[float, str]]:
        raise NimaError("no server answers")

    module = load("asyncio_pipeline")
    monkeypatch.setattr(module, "run", refused)
    monkeypatch.setattr("sys.argv", ["asyncio_pipeline.py", str(folder)])
    with pytest.raises(SystemExit, match="no server answers"):
        module.main()


def test_notebook(folder: Path, triton: Any) -> None:
    pytest.importorskip("pandas")
    out = run("notebook.py", folder, url=triton.grpc_url)
    assert "UNSUPPORTED" in out
    assert "0.JPG" in out
    assert "most disputed:" in out


def test_notebook_without_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setattr("sys.argv", ["notebook.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no photos there.*set `folder`"):
        load("notebook")


def test_notebook_of_photos_that_cannot_be_scored(
    server: KServeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    monkeypatch.setenv("NIMA_URL", server.url)
    monkeypatch.setattr("sys.argv", ["notebook.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="none of these photos could be scored"):
        load("notebook")


@pytest.mark.parametrize("url", ["127.0.0.1:1", "nowhere"])
def test_notebook_without_a_server(folder: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setenv("NIMA_URL", url)
    monkeypatch.setattr("sys.argv", ["notebook.py", str(folder)])
    with pytest.raises(SystemExit, match=r"(no server answers|no port).*`nima serve`.*NIMA_URL"):
        load("notebook")


@pytest.mark.parametrize("name", ["ray", "spark"])
def test_cluster_examples_take_one_folder_and_one_output(tmp_path: Path, name: str) -> None:
    pytest.importorskip("ray", reason="nima_client.ray needs the extra ray")
    # Spark is large: a stand-in, which is not used.
    (tmp_path / "pyspark").mkdir()
    (tmp_path / "pyspark" / "__init__.py").touch()
    (tmp_path / "pyspark" / "sql.py").write_text("SparkSession = None")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    for arguments in ([], ["a.jpg", "b.jpg", "scores"]):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{name}_folder.py"), *arguments],
            capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path},
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert f"examples/{name}_folder.py s3" in done.stderr


def test_fastapi_service(
    server: KServeServer, photo: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    import grpc

    monkeypatch.setenv("NIMA_URL", server.url)
    service = load("fastapi_service")

    async def use() -> list[Any]:
        transport = httpx.ASGITransport(app=service.app)
        async with (
            service.app.router.lifespan_context(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
        ):
            ready = await http.get("/ready")
            good = await http.post("/score", content=photo(1))
            bad = await http.post("/score", content=b"no photo")
            server.behaviour = lambda number, images, context: context.abort(
                grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"
            )
            busy = await http.post("/score", content=photo(1))
            server.behaviour = lambda number, images, context: server._sleep(9, context)
            with monkeypatch.context() as soon:
                soon.setattr(service, "DEADLINE_S", 0.5)
                slow = await http.post("/score", content=photo(1))
            server.stop()
            gone = await http.post("/score", content=photo(1))
        return [ready, good, bad, busy, slow, gone]

    answers = asyncio.run(use())
    assert [a.status_code for a in answers] == [200, 200, 422, 503, 504, 502]
    assert answers[0].json() == {"checkpoint": "fake"}
    assert 1 <= answers[1].json()["mean"] <= 10
    assert answers[2].json()["detail"]["code"] == "UNSUPPORTED"
    assert answers[3].headers["retry-after"] == "1"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_what_it_is(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith(('"""', "# %% [markdown]"))
    compile(text, str(script), "exec")
