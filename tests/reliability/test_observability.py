"""Metrics, rules, dashboard, logs and traces, held against what a real tritonserver does."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import promql_parser
import pytest
import tritonclient.grpc as triton
import yaml
from _corpus import seeds
from _load import stubs_of
from _metrics import dashboard, failures, metrics, pending, successes

from nima_client import NO_RETRIES, ImageScore, NimaClient
from nima_client.contract import INPUT_IMAGE, MODEL_NAME, NETWORK_MODEL, PREPROCESS_MODEL

TREE = Path(__file__).resolve().parents[2]
FOLDER = TREE / "docker" / "observability"
# A header that is sound before a body that is not: only the server's decoder notices.
PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
BAD_PHOTO = seeds("PNG")[1][: len(seeds("PNG")[1]) // 2]


def rules() -> list[dict[str, object]]:
    groups = yaml.safe_load((FOLDER / "prometheus-rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    adapter = yaml.safe_load((TREE / "docker/kubernetes/prometheus-adapter.yaml").read_text())
    queries = [rule["metricsQuery"] for rule in adapter["rules"]["custom"]]
    queries = [
        q.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="n"')
        for q in queries
    ]
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [str(rule["expr"]) for rule in rules()] + panels + queries


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_is_promql(expression: str) -> None:
    promql_parser.parse(expression.replace("$instance", "x"))


def test_every_metric_and_label_is_one_that_triton_exports(shared_server) -> None:
    with NimaClient(shared_server.grpc_url) as client:
        client.score([*seeds("JPEG"), BAD_PHOTO], on_error="return")
    text = metrics(shared_server)
    exported = set(re.findall(r"^(nv_\w+)[ {]", text, re.MULTILINE))
    labels = set(re.findall(r'(\w+)="', text)) | {"instance", "namespace", "pod", "job"}
    reasons = set(re.findall(r'reason="(\w+)"', text))
    for expression in expressions():
        used = set(re.findall(r"\b(nv_\w+)", expression))
        # No GPU here: those two are as Triton's documentation names them.
        assert {m for m in used if not m.startswith("nv_gpu_")} <= exported, expression
        assert set(re.findall(r'(\w+)=~?"', expression)) <= labels, expression
        for value in re.findall(r'reason=~?"([^"]+)"', expression):
            assert set(value.split("|")) <= reasons


def test_alerts_say_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 6
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["action"]
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert set(re.findall(r"\bnima:\w+:\w+", str(rule["expr"]))) <= recorded


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((FOLDER / "prometheus-rules-test.yaml").read_text())["tests"]
    fires = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", ())
        if case.get("exp_alerts")
    }
    assert fires == {rule["alert"] for rule in rules() if "alert" in rule}


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: scripts/promtool.sh brings it")
@pytest.mark.parametrize("what", ["check rules prometheus-rules.yaml",
                                  "test rules prometheus-rules-test.yaml"])  # fmt: skip
def test_alerts_fire_when_they_should_and_only_then(what: str) -> None:
    ended = subprocess.run(
        [str(PROMTOOL), *what.split()], cwd=FOLDER, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "SUCCESS" in ended.stdout


def test_the_dashboard_is_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {variable["name"] for variable in dashboard()["templating"]["list"]} == {
        "datasource",
        "instance",
    }
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24


def at_rest(read: Callable[[], dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Counters that have not moved for half a second: Triton counts after it has answered."""
    value, since = read(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if (now := read()) != value:
            value, since = now, time.monotonic()
    return value


def test_refused_images_are_counted_as_the_rules_say(shared_server) -> None:
    """An answer of the preprocessing that the network never sees; the ensemble fails twice."""
    models = ("nima", PREPROCESS_MODEL, NETWORK_MODEL)

    def counts() -> dict[str, tuple[float, float]]:
        """Successes and failures of each model."""
        server = shared_server
        return {m: (successes(server, m), sum(failures(server, m).values())) for m in models}

    before = at_rest(counts)
    with NimaClient(shared_server.grpc_url, request_size=1) as client:
        results = client.score([BAD_PHOTO] * 5, on_error="return")
    assert [r.code for r in results] == ["UNDECODABLE"] * 5
    expected = {"nima": (0, 10), PREPROCESS_MODEL: (5, 0), NETWORK_MODEL: (0, 0)}
    moved, end = {}, time.monotonic() + 10
    while moved != expected and time.monotonic() < end:
        after = at_rest(counts)
        moved = {m: tuple(a - b for a, b in zip(after[m], before[m])) for m in models}
    assert moved == expected


@pytest.mark.parametrize("step", [PREPROCESS_MODEL, NETWORK_MODEL])
def test_a_dead_stub_moves_the_counters_that_its_alert_looks_at(
    start_server: Callable[..., object], step: str
) -> None:
    """NimaNotScoring: that step waits or fails, and has no more successes; health stays green."""
    server = start_server()
    with NimaClient(server.grpc_url, retry=NO_RETRIES, request_timeout=2.0) as client:
        client.score_one(seeds("JPEG")[0])
        for pid in stubs_of(server, step):
            os.kill(pid, signal.SIGKILL)
        before = at_rest(lambda: {step: (successes(server, step), 0)})
        results = client.score(seeds("JPEG"), on_error="return")
    assert not any(isinstance(result, ImageScore) for result in results)
    assert failures(server, step)["BACKEND"] + pending(server, step) > 0
    assert at_rest(lambda: {step: (successes(server, step), 0)}) == before
    with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready", timeout=5) as answer:
        assert answer.status == 200


def logged(path: Path) -> list[dict[str, object]]:
    """The objects that the preprocessing has logged, once there are any.

    The stub's lines go through a queue of their own: an answer may overtake them.
    """
    lines, end = [], time.monotonic() + 10
    while not lines and time.monotonic() < end:
        # Triton writes each message as a JSON string; ours is JSON itself.
        messages = re.findall(r'\] ("\{.*\}")$', path.read_text(), re.MULTILINE)
        lines = [json.loads(json.loads(message)) for message in messages]
        time.sleep(0.05)
    return lines


def test_request_ids_run_from_the_client_to_the_servers_log(
    start_server: Callable[..., object], tmp_path: Path
) -> None:
    server = start_server(log_file=tmp_path / "triton.log")
    with NimaClient(server.grpc_url) as client:
        scored, refused = client.score([seeds("JPEG")[0], BAD_PHOTO], on_error="return")
    assert isinstance(scored, ImageScore)
    assert refused.request_id
    assert logged(tmp_path / "triton.log") == [
        {
            "event": "nima_rejected",
            "request_id": refused.request_id,
            "images": 1,
            "codes": ["UNDECODABLE"],
        }
    ]


def test_a_request_id_of_a_megabyte_does_not_fill_the_log(
    start_server: Callable[..., object], tmp_path: Path
) -> None:
    server = start_server(log_file=tmp_path / "triton.log")
    image = triton.InferInput(INPUT_IMAGE, [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[BAD_PHOTO]], dtype=np.object_))
    with pytest.raises(triton.InferenceServerException, match="UNDECODABLE"):
        server.probe(10).connect().infer(MODEL_NAME, [image], request_id="\x01" * 1_000_000)
    (line,) = logged(tmp_path / "triton.log")
    assert line["request_id"] == "\x01" * 128


@pytest.fixture
def collector() -> Iterator[tuple[str, list[str]]]:
    """An OpenTelemetry collector of our own: takes OTLP over HTTP and keeps it."""
    received: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()


def test_traces_continue_the_callers(
    start_server: Callable[..., object], collector: tuple[str, list[str]]
) -> None:
    """The settings of tracing.env, with every request traced and our collector's address."""
    url, received = collector
    line = (FOLDER / "tracing.env").read_text().splitlines()[-1].partition("=")[2]
    arguments = line.replace("http://otel-collector:4318/v1/traces", url)
    arguments = arguments.replace("rate=100", "rate=1")
    server = start_server(extra_arguments=tuple(arguments.split()))
    trace = "0af7651916cd43dd8448eb211c80319c"
    header = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with NimaClient(server.grpc_url, headers=header) as client:
        client.score_one(seeds("JPEG")[0])
    end = time.monotonic() + 30
    while time.monotonic() < end and not any(trace in body for body in received):
        time.sleep(0.1)
    text = "".join(received)
    assert trace in text
    for model in ("nima", PREPROCESS_MODEL, NETWORK_MODEL):
        assert f'"{model}"' in text
