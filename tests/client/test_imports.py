"""The client's modules import one another in one direction only."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

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
