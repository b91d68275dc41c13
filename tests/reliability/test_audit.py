"""``scripts/audit_offline.py`` finds the versions that an advisory names, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "audit_offline.py"
ADVISORY = """
id: PYSEC-2099-1
published: 2099-01-02T00:00:00Z
aliases: [CVE-2099-1]
affected:
- package: {ecosystem: PyPI, name: Some_Package}
  ranges:
  - type: GIT
    events: [{introduced: "0"}, {fixed: 0123abc}]
  - type: ECOSYSTEM
    events: [{introduced: "1.2"}, {fixed: 1.10}, {introduced: "2.0"}, {last_affected: "2.3"}]
  versions: [0.9.post1]
"""


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_offline", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "vulns" / "some-package"
    folder.mkdir(parents=True)
    (folder / "PYSEC-2099-1.yaml").write_text(ADVISORY)
    (folder / "PYSEC-2099-2.yaml").write_text(
        ADVISORY.replace("PYSEC-2099-1", "PYSEC-2099-2") + "withdrawn: 2099-02-01T00:00:00Z\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("version", "hit"),
    [
        ("1.1", False), ("1.2", True), ("1.9.9", True), ("1.10", False), ("1.10.1", False),
        ("2.0", True), ("2.3", True), ("2.3.1", False), ("0.9.post1", True), ("0.9", False),
    ],
)  # fmt: skip
def test_affected_versions_and_no_others(audit, database: Path, version: str, hit: bool) -> None:
    lines, looked_at, newest = audit.audit(database, {"some-package": version, "other": "1"})
    assert lines == (["some-package " + version + ": PYSEC-2099-1 (CVE-2099-1)"] if hit else [])
    assert (looked_at, newest) == (1, "2099-01-02")


def test_what_is_installed_is_what_is_audited(audit, database: Path, capsys) -> None:
    import PIL

    assert audit.installed()["pillow"] == PIL.__version__
    assert audit.main([str(database)]) == 0
    assert "0 known vulnerabilities" in capsys.readouterr().out
    assert audit.main([]) == 2
    assert audit.main([str(database / "nowhere")]) == 2
