"""``nima COMMAND --help`` on a terminal of 80 columns."""

from __future__ import annotations

import importlib
import itertools
import re
from typing import Any

import pytest

pytest.importorskip("typer", reason="the commands need the extra cli")

from nima_client.cli.main import COMMANDS, main


def app_of(name: str) -> Any:
    module, _, attribute = COMMANDS[name].target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_named_whole_and_paragraphs_fill_their_lines(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = app_of(name)
    import typer

    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    options = [o for p in typer.main.get_command(app).params for o in (*p.opts, *p.secondary_opts)]
    for option in options:
        assert re.search(rf"(?<!\S){re.escape(option)}(?!\w|-\w)", text), option
    prose = text.partition("╭─")[0].splitlines()
    for line, following in itertools.pairwise(prose):
        if line.strip() and following.strip():
            word = following.split()[0]
            assert len(line.rstrip()) + 1 + len(word) > 79, f"{line.strip()} | {word}"


@pytest.mark.parametrize("name", COMMANDS)
def test_tracebacks_show_no_values(name: str) -> None:
    """Typer's own show local variables in some versions, and with them the tokens of a server."""
    app = app_of(name)
    assert not app.pretty_exceptions_enable
