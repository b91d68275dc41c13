"""Scripts that measure choices in rounds: told as they go, and what a run that ends early keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nima_build.bench.rounds import Rounds

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class Trial:
    """Three rounds over two choices, of which a given measurement fails."""

    def __init__(self, fail_at: int = -1, error: BaseException | None = None) -> None:
        self.rounds: Rounds[int] = Rounds("trial.py", 3)
        self.measured: list[str] = []
        self.fail_at, self.error = fail_at, error

    def measure(self, name: str) -> int:
        if len(self.measured) == self.fail_at:
            raise self.error
        self.measured.append(name)
        return len(self.measured)

    def run(self) -> None:
        with self.rounds.table(lambda found: f"the table of {found}"):
            self.rounds.run(["a", "b"], self.measure, lambda name, own: f"{name}: {own}")


def test_every_measurement_is_told_as_it_comes_and_the_order_rotates(capsys):
    trial = Trial()
    trial.run()
    assert trial.measured == ["a", "b", "b", "a", "a", "b"]
    out, err = capsys.readouterr()
    assert err.splitlines()[:3] == [
        "trial.py: round 1 of 3, a: 1",
        "trial.py: round 1 of 3, b: 2",
        "trial.py: round 2 of 3, b: 3",
    ]
    assert out == "the table of {'a': [1, 4, 5], 'b': [2, 3, 6]}\n"


def test_a_failure_leaves_the_rounds_that_were_over(capsys):
    told = "trial.py: ended early, 2 of 3 rounds were over: the server is gone"
    with pytest.raises(SystemExit) as ended:
        Trial(5, OSError("the server\nis gone")).run()
    assert ended.value.code == told  # on standard error, with status 1
    assert capsys.readouterr().out == (
        "**Incomplete**: 2 of 3 rounds were over when the run ended early (the server is gone).\n\n"
        "the table of {'a': [1, 4], 'b': [2, 3]}\n"
    )
    for kind in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(kind):
            Trial(2, kind()).run()
        assert "the table of {'a': [1], 'b': [2]}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0 of 3 rounds were over: no server"):
        Trial(1, RuntimeError("no server")).run()
    assert capsys.readouterr().out == ""


def test_a_failure_when_all_is_over_does_not_make_the_table_incomplete(capsys):
    trial = Trial()

    def run() -> None:
        with trial.rounds.table(str):
            trial.rounds.run(["a"], trial.measure, lambda *_: "")
            raise RuntimeError("a server that does not stop")

    with pytest.raises(SystemExit, match="3 of 3"):
        run()
    assert capsys.readouterr().out == "{'a': [1, 2, 3]}\n"


SCRIPTS = {
    "variants.py": ["--variants", "shipped", "--seconds", "0.2", "--rounds", "200"],
    "bursts.py": ["--variants", "shipped", "--bursts", "3000", "--together", "2"],
    "request_size.py": ["--sizes", "1", "--count", "4", "--rounds", "2000"],
}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        *((name, "Ctrl-C") for name in SCRIPTS),
        # The client of request_size.py would wait long for another server.
        *((name, "the server is killed") for name in ("variants.py", "bursts.py")),
    ],
)
def test_a_script_that_ends_early_prints_the_table_it_has(name, end, encode, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode("JPEG", (320, 240)))
    script = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / name), "--photos", str(tmp_path), *SCRIPTS[name]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        first = next((line for line in script.stderr if " 2 of " in line), "")
        assert re.match(rf"{re.escape(name)}: (round|burst) 2 of \d+, .*\d ", first), first
        if end == "Ctrl-C":
            script.send_signal(signal.SIGINT)
        else:
            children = psutil.Process(script.pid).children(recursive=True)
            next(one for one in children if one.name() == "tritonserver").kill()
        out, err = script.communicate(timeout=120)
    finally:
        script.kill()
    assert script.returncode == (130 if end == "Ctrl-C" else 1), err
    *_, last = err.splitlines()
    assert re.search(r": (stopped:|ended early,) \d+ of \d+ (round|burst)s were over", last), err
    assert re.search(r"^\*\*Incomplete\*\*: \d+ of \d+ (round|burst)s were over when", out, re.M)
    assert re.search(r"^\| (shipped|1) \| \d", out, re.M)


def test_an_overload_that_is_stopped_keeps_the_phases_that_were_over(tmp_path):
    # Nor does it ask a proxy for this machine's own loopback.
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "no_grpc_proxy": ""}
    factors = ["0.2"] + [f"{n / 100}" for n in range(21, 99)]
    script = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "overload.py"), "--seconds", "0.5", "--factors", *factors,
         "--json", str(tmp_path / "kept.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **proxy},
    )  # fmt: skip
    try:
        first = next((line for line in script.stderr if " x0.2: " in line), "")
        assert re.search(r"x0.2: [\d.]+ images/s in time, \d+% of the capacity$", first.strip())
        script.send_signal(signal.SIGINT)
        out, err = script.communicate(timeout=120)
    finally:
        script.kill()
    assert script.returncode == 130, err
    kept = json.loads(out)
    assert kept["complete"] is False
    assert kept["x0.2"]["goodput_per_s"] > 0
    assert json.loads((tmp_path / "kept.json").read_text()) == kept
