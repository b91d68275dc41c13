"""The client's modules import one another in one direction only, and gRPC only where it is used."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import nima_client

ROOT = Path(nima_client.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: set[str]) -> set[str]:
    """Modules that this one imports on its top level, for types as well."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [n for node in tree.body if isinstance(node, ast.If) for n in node.body]
    for node in [*tree.body, *guarded]:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module if n not in modules else n for n in names}
    return found & modules


def test_no_module_needs_itself() -> None:
    paths = {module_name(path): path for path in ROOT.rglob("*.py")}
    modules = set(paths) - {"nima_client"}
    graph = {name: imported(paths[name], modules) - {name} for name in modules}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("nima_client.results") < order.index("nima_client.errors")
    assert len(order) > 40


def declared() -> dict[str, str]:
    """Public names and their modules, as the package declares them to type checkers."""
    tree = ast.parse(Path(nima_client.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def test_every_public_name_is_what_its_module_defines() -> None:
    homes = declared()
    assert {*homes, "__version__"} == set(nima_client.__all__) <= set(dir(nima_client))
    for name, home in homes.items():
        assert getattr(nima_client, name) is getattr(importlib.import_module(home), name), name
    for module in ("contract", "errors", "preprocess", "results"):
        assert getattr(nima_client, module) is importlib.import_module(f"nima_client.{module}")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nima_client' has no attribute 'scores'"):
        nima_client.scores  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Nima'"):
        exec("from nima_client import Nima")


@pytest.mark.parametrize(
    "module", ["cli.main", "preprocess", "contract", "_gate", "_stall", "_signals"]
)
def test_grpc_is_left_alone_by_what_does_not_call_a_server(module: str) -> None:
    code = f"import sys, nima_client.{module}; print({{'grpc', 'tritonclient'}} & {{*sys.modules}})"
    asked = [sys.executable, "-c", code]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "set()\n"
