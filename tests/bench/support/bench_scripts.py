"""The scripts of ``benchmarks/``, imported or run in this process."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def load_script(path: Path):
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(f"bench_script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCRIPTS = sorted(
    str(path.relative_to(BENCHMARKS))
    for path in BENCHMARKS.glob("**/*.py")
    if "ArgumentParser(" in path.read_text()
)


def run_script(monkeypatch, name: str, *arguments: str) -> None:
    """Run a script as ``python benchmarks/NAME`` does, in this process: its imports are shared."""
    path = BENCHMARKS / name
    known = set(sys.modules)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        # Two folders have a ``variants``: none may be found in the place of the other.
        for module in set(sys.modules) - known:
            if BENCHMARKS in Path(getattr(sys.modules[module], "__file__", None) or "/").parents:
                del sys.modules[module]
