"""Imports go one way, and inside Triton only the network of a GPU profile needs torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def offenders(folder: str, pattern: str, forbidden: set[str]) -> dict[str, set[str]]:
    found = {}
    for path in sorted((ROOT / folder).glob(pattern)):
        if hits := imported(path) & forbidden:
            found[str(path.relative_to(ROOT))] = hits
    return found


@pytest.mark.parametrize(
    ("folder", "pattern", "forbidden"),
    [
        ("client", "nima_client/**/*.py", {"nima_build", "nima_training", "torch"}),
        ("training", "nima_training/**/*.py", {"nima_build"}),
        ("model_repository", "*/1/*.py", {"nima_build", "nima_training"}),
        ("model_repository", "nima_preprocess/1/*.py", {"torch"}),
        ("model_repository", "nima_network/1/model.py", {"torch"}),
        ("build", "nima_build/server/*.py", {"nima_training", "torch"}),
    ],
)
def test_imports_go_one_way(folder, pattern, forbidden):
    assert offenders(folder, pattern, forbidden) == {}


def test_the_map_names_what_the_models_inside_triton_import():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (column,) = re.findall(r"^\| `model_repository` \|.*\|(.*)\|$", page, re.MULTILINE)
    named = {name.split(".")[-1] for name in re.findall(r"`([\w.]+)`", column)}
    programs = "\n".join(path.read_text() for path in (ROOT / "model_repository").glob("*/1/*.py"))
    assert set(re.findall(r"^\s*from nima_client\.(\w+)", programs, re.MULTILINE)) == named


def test_nothing_is_pickled():
    for folder in ("client", "training", "build", "model_repository"):
        assert offenders(folder, "**/*.py", {"pickle", "cloudpickle", "joblib", "dill"}) == {}


def test_files_can_be_read_in_a_sitting():
    long = {}
    for folder in ("client", "training", "build", "model_repository", "benchmarks", "examples"):
        for path in (ROOT / folder).glob("**/*.py"):
            lines = len(path.read_text().splitlines())
            if lines > 400:
                long[str(path.relative_to(ROOT))] = lines
    assert long == {}
