"""tritonserver's arguments, and how the probe of it connects."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from nima_build.server import EmbeddedServer, Probe, ServerOptions
from nima_build.server._arguments import command, environment, pools
from nima_build.server._ports import Ports


@pytest.mark.parametrize(("device", "closed"), [("cpu", True), ("cuda", False)])
def test_the_metrics_of_a_gpu_are_exported_where_one_is_used(device: str, closed: bool) -> None:
    given = command(ServerOptions(device=device), Path("/x"), Ports(1, 2, 3), "token", "nima_x_")
    assert ("--allow-gpu-metrics=false" in given) is closed


def test_pixels_on_a_gpu_have_more_room_than_by_default() -> None:
    given = command(ServerOptions(device="cuda"), Path("/x"), Ports(1, 2, 3), "token", "nima_x_", 2)
    assert {"--cuda-memory-pool-byte-size=0:536870912", *pools(2)} <= set(given)
    with EmbeddedServer(ServerOptions(instances=1, extra_arguments=tuple(pools(2)))) as server:
        log = server.log_path.read_text()
    for gpu in (0, 1):
        assert re.search(rf"cuda_memory_pool_byte_size\{{{gpu}\}} +\| 536870912 ", log)


def test_an_environment_without_a_path_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from ``env -i``: the interpreter comes first, the system's folders after it."""
    monkeypatch.delenv("PATH")
    first, *others = environment()["PATH"].split(os.pathsep)
    assert first == str(Path(sys.executable).parent)
    assert "/usr/bin" in others or "/bin" in others


def test_the_probe_connects_anew_now_and_then(triton, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose certificate ran out answers only those who are connected already."""
    connected, connect = [], Probe.connect

    def count(self: Probe) -> object:
        connected.append(connect(self))
        return connected[-1]

    monkeypatch.setattr(Probe, "connect", count)
    probe = Probe(triton.grpc_url)
    for _ in range(25):
        assert probe().alive
    probe.close()
    assert len(connected) == 3
