"""Write docs/client-api.md from the docstrings of the client's public names.

python scripts/client_api_reference.py            write it
python scripts/client_api_reference.py --check    fail if it is not up to date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nima_client
import nima_client.errors
import nima_client.library.run
import nima_client.library.sources
import nima_client.ray
import nima_client.tables
import nima_client.testing
from nima_client._base import BaseClient

_SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:", "Example:")
TARGET = Path(__file__).resolve().parents[1] / "docs" / "client-api.md"
HEAD = """# Client API

Made from the docstrings by `python scripts/client_api_reference.py`; do not edit.
"""
SECTIONS: tuple[tuple[str, ModuleType, tuple[str, ...]], ...] = (
    ("Scoring", nima_client, ("score", "NimaClient", "AsyncNimaClient")),
    ("Options", nima_client, ("RetryPolicy", "TLS", "Limits")),
    ("Results", nima_client, ("ImageScore", "ImageFailure", "ModelInfo")),
    ("Columns", nima_client.tables, ("to_numpy", "to_pandas", "to_arrow")),
    (
        "Testing your own code",
        nima_client.testing,
        ("FakeTransport", "reply", "rejected", "status_error", "describe_model"),
    ),
    ("Collections", nima_client.library.sources, ("find_photos", "Photo")),
    ("", nima_client.library.run, ("score_photos",)),
    ("Ray", nima_client.ray, ("score_dataset", "score_partitions", "Scorer", "score_table")),
)


def signature(thing: Any) -> str:
    """Arguments as written in the source (annotations are strings, shown in quotes by inspect)."""
    text = str(inspect.signature(thing))
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def document(thing: Any) -> str:
    """A docstring as Markdown: named entries become lists, examples code."""
    lines: list[str] = []
    section = ""
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line in _SECTIONS:
            section = line[:-1]
            lines += ["", f"**{section}**", "", *(["```python"] if section == "Example" else [])]
        elif not section or not line.strip():
            lines.append(line)
        elif section == "Example":
            lines.append(line[4:])
        elif line.startswith("     "):
            lines[-1] += " " + line.strip()
        else:
            name, colon, rest = line.strip().partition(": ")
            listed = section in ("Args", "Attributes", "Raises") and colon and " " not in name
            lines.append(f"- `{name}`: {rest}" if listed else line.strip())
    if section == "Example":
        lines.append("```")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip())
    text = re.sub(r":(?:class|meth|func|mod|data|attr):`~?([^`]*)`", r"`\1`", text)
    return re.sub(r"(?<!`)``(?!`)", "`", text).replace(
        "`nima_client._base.BaseClient`", "the list below"
    )


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class, its own before those of its base."""
    for part in (kind, *([BaseClient] if issubclass(kind, BaseClient) else [])):
        for name, member in vars(part).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                yield name, member


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, module, names in SECTIONS:
        parts += [f"## {title}\n"] if title else []
        for name in names:
            thing = getattr(module, name)
            prefix = "" if module is nima_client else module.__name__ + "."
            if inspect.isclass(thing):
                parts.append(f"### class `{prefix}{name}`\n\n{document(thing)}\n")
                if issubclass(thing, BaseClient):
                    parts.append(f"```\n{name}{signature(thing)}\n```\n")
                    if thing is nima_client.NimaClient:
                        parts.append(f"{document(BaseClient)}\n")
                for member_name, member in members(thing):
                    call = "" if isinstance(member, property) else signature(member)
                    parts.append(f"#### `{name}.{member_name}{call}`\n\n{document(member)}\n")
            else:
                parts.append(f"### `{prefix}{name}{signature(thing)}`\n\n{document(thing)}\n")
    tree = inspect.getdoc(nima_client.errors) or ""
    parts.append(f"## Errors\n\n```\n{tree}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write or check the page."""
    text = render()
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET} is out of date: run python {sys.argv[0]}", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    print(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
