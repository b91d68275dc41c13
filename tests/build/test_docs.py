"""The pages: the options they use exist, and what docs/deploy-gpu.md names."""

from __future__ import annotations

import configparser
import importlib
import re
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nima_client.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy-gpu.md").read_text()


def test_files_it_names_exist() -> None:
    named = set(re.findall(r"\b(?:docker|tests|docs|benchmarks)/[\w./-]+\.\w+", PAGE))
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_options_the_pages_use_exist(command: str) -> None:
    module, name = COMMANDS[command].target.split(":")
    app = getattr(importlib.import_module(module), name)
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    assert "--help" in known
    # A backslash ends a line of a command that goes on.
    pages = "\n".join(page.read_text().replace("\\\n", "") for page in PAGES)
    used = {
        option
        for use in re.findall(rf"\bnima {command}\b([^#`\n]*)", pages)
        for option in re.findall(r"(?<= )--?[a-z][\w-]*", use)
    }
    assert not used - known


def test_image_tag_is_the_one_of_the_dockerfile() -> None:
    tag = re.search(
        r"^ARG TRITON_TAG=(\S+)$", (ROOT / "docker/server.Dockerfile").read_text(), re.M
    )
    assert tag
    tags = set(re.findall(r"tritonserver:(\d\d\.\d\d-py3)", PAGE))
    assert tags == {tag[1]}


def test_ten_lines_lead_from_a_checkpoint_to_perf_analyzer() -> None:
    yaml = pytest.importorskip("yaml")
    section = PAGE.split("## Ten lines\n")[1].split("\n## ")[0]
    block = re.findall(r"((?:^    .+\n)+)", section, re.MULTILINE)[0]
    lines = [line.strip() for line in block.replace("\\\n", "").splitlines()]
    assert len(lines) <= 10
    text = "\n".join(lines)
    assert 0 < text.index("nima export CHECKPOINT") < text.index("run --rm engine")
    assert text.index("run --rm engine") < text.index("triton") < text.index("perf_analyzer")
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    used = re.findall(r"(?:run --rm(?: -v \S+)?|up -d --wait) ([a-z][\w-]*)", text)
    assert set(used) == {"engine", "triton", "client"}
    assert set(used) <= set(services)


def test_the_systemd_unit_can_be_enabled() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (text,) = re.findall(r"(?:^    .*\n|^\n)+", page[page.index("    [Unit]") :], re.MULTILINE)[:1]
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(textwrap.dedent(text))
    assert "nima serve" in unit["Service"]["ExecStart"]
    assert unit["Install"]["WantedBy"]


@pytest.mark.parametrize(
    "line",
    [
        "export /nowhere",
        "build --onnx /nowhere",
        "verify /nowhere.jpg",
        "bench /nowhere --url 127.0.0.1:1",
        "perf-inputs /nowhere /nowhere/out",
        "doctor --url 127.0.0.1:1",
        "serve --model-repository /nowhere --grpc-port 0 --http-port 0 --metrics-port 0",
        "report /nowhere.csv",
        "compare /nowhere.csv /nowhere.json",
        "train /nowhere",
        "analyse /nowhere --checkpoint /nowhere --out /nowhere/out",
        "distill /nowhere --teacher /nowhere --work-dir /nowhere/work --out /nowhere/out",
        "evaluate /nowhere --manifest /nowhere --photos /nowhere --out /nowhere/out",
    ],
)
def test_bad_input_has_the_status_that_operations_md_says(line: str) -> None:
    command, *arguments = line.split()
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| ([12]) \| (`.*`) \|", page, re.MULTILINE)
    (status,) = (int(status) for status, names in rows if f"`{command}`" in names)
    module, name = COMMANDS[command].target.split(":")
    ended = CliRunner().invoke(getattr(importlib.import_module(module), name), arguments)
    assert ended.exit_code == status, ended.output
    assert "Usage:" not in ended.output, "the command line is wrong: this shows nothing"
