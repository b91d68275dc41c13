"""Known vulnerabilities of the installed packages, from a clone of PyPI's advisory database.

    git clone --depth 1 https://github.com/pypa/advisory-database
    python scripts/audit_offline.py advisory-database

For machines that cannot ask the database itself, which `make audit` does. The result is as new as
the clone: its newest advisory is named. Exit status 1 when an installed version is affected.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def installed() -> dict[str, str]:
    """Version by normalised name of every package in this environment."""
    found = {}
    for distribution in importlib.metadata.distributions():
        found[canonicalize_name(distribution.metadata["Name"])] = distribution.version
    return found


def is_affected(version: str, affected: dict[str, Any]) -> bool:
    """Whether a version is in an ``affected`` object of the OSV schema (ossf.github.io)."""
    if version in affected.get("versions", ()):
        return True
    return any(
        entry["type"] == "ECOSYSTEM" and _in_range(Version(version), entry["events"])
        for entry in affected.get("ranges", ())
    )


def _in_range(version: Version, events: list[dict[str, str]]) -> bool:
    inside = False
    ordered = sorted(events, key=lambda event: _as_version(next(iter(event.values()))))
    for event in ordered:
        kind, at = next(iter(event.items()))
        if kind == "introduced" and version >= _as_version(at):
            inside = True
        elif (kind == "fixed" and version >= _as_version(at)) or (
            kind == "last_affected" and version > _as_version(at)
        ):
            inside = False
    return inside


def _as_version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def advisories(database: Path, name: str) -> Iterator[dict[str, Any]]:
    """Advisories about one package that were not withdrawn."""
    for path in sorted((database / "vulns" / name).glob("*.yaml")):
        # BaseLoader: versions such as 1.10 are no numbers.
        entry = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
        if "withdrawn" not in entry:
            yield entry


def audit(database: Path, packages: dict[str, str]) -> tuple[list[str], int, str]:
    """Hold packages against the database.

    Returns:
        One line for each advisory that affects an installed version, how many advisories were
        looked at, and the date of the newest.
    """
    lines, looked_at, newest = [], 0, ""
    for name, version in sorted(packages.items()):
        for entry in advisories(database, name):
            looked_at += 1
            newest = max(newest, entry.get("published", ""))
            rows = [a for a in entry.get("affected", ()) if _is_about(a, name)]
            if any(is_affected(version, row) for row in rows):
                also = ", ".join(entry.get("aliases", ()))
                lines.append(f"{name} {version}: {entry['id']} ({also})")
    return lines, looked_at, newest[:10]


def _is_about(affected: dict[str, Any], name: str) -> bool:
    return canonicalize_name(affected["package"]["name"]) == name


def main(arguments: list[str]) -> int:
    """Command line; see the module."""
    database = Path(arguments[0]) if len(arguments) == 1 else None
    if database is None or not (database / "vulns").is_dir():
        print("usage: python scripts/audit_offline.py CLONE_OF_pypa/advisory-database")
        return 2
    packages = installed()
    lines, looked_at, newest = audit(database, packages)
    print("\n".join(lines))
    print(
        f"{len(lines)} known vulnerabilities in {len(packages)} packages, by {looked_at} advisories"
        f" about them; the newest of these is of {newest or 'never'}"
    )
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
