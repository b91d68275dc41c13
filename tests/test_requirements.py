"""``constraints.txt`` keeps what ``pyproject.toml`` promises, on each Python it names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Comes with pytest.
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.10", "3.11", "3.12")
# From the vendor, at the version that the machine's driver wants.
UNPINNED = {"tensorrt", "cuda-bindings"}


def asked(python: str) -> Iterator[Requirement]:
    """What the bare install and the extras ask for on this Python."""
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            yield requirement


def pins(python: str) -> dict[str, str]:
    """Version of each pinned package on this Python; one line may hold for it, not two."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert canonicalize_name(pin.name) not in found, line
            found[canonicalize_name(pin.name)] = exact.version
    return found


def test_the_pythons_are_those_of_the_project() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [p for p in ("3.9", *PYTHONS, "3.13") if p in allowed] == list(PYTHONS)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_a_pin_that_it_allows(python: str) -> None:
    pinned = pins(python)
    wrong = {}
    for requirement in asked(python):
        name = canonicalize_name(requirement.name)
        if name in UNPINNED:
            assert name not in pinned
        elif pinned.get(name) is None or pinned[name] not in requirement.specifier:
            wrong[str(requirement)] = pinned.get(name)
    assert wrong == {}
