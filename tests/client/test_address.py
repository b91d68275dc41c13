"""What is an address, and which addresses a proxy is never asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from nima_client import NO_RETRIES, ConnectError, NimaClient
from nima_client._address import is_local, normalise_url, proxy_of
from nima_client._connection import Connection

Make = Callable[..., Any]
NOWHERE = "http://user:secret@127.0.0.1:9"
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (" 127.0.0.1:8001\n", "127.0.0.1:8001"),
        ("host:65535", "host:65535"),
        ("[fe80::1%eth0]:8001", "[fe80::1%eth0]:8001"),
        ("grpc://[::1]:8001/", "[::1]:8001"),
        ("dns:host:1", "dns:host:1"),
        ("dns://10.0.0.2/host:1", "dns://10.0.0.2/host:1"),
        ("ipv6:[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
        ("unix:relative.sock", "unix:relative.sock"),
        ("unix-abstract:name", "unix-abstract:name"),
        ("xds:///scores", "xds:///scores"),
    ],
)
def test_addresses(url: str, target: str) -> None:
    assert normalise_url(url) == (target, False)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("127.0.0.1:99999", "65535"),
        ("127.0.0.1:0", "65535"),
        ("127.0.0.1:abc", "65535"),
        ("127.0.0.1:-1", "65535"),
        ("127.0.0.1:٨", "65535"),
        ("[::1]x:1", "brackets"),
        ("host:", "no port"),
        ("[::1]", "no port"),
        ("dns:///host", "no port"),
        ("ipv4:10.0.0.1:8001,10.0.0.2", "no port"),
        ("ipv4:10.0.0.1:8001,", "address"),
        ("ipv6:[::1]", "no port"),
        ("::1:8001", "brackets"),
        ("fe80::1:2:3", "brackets"),
        ("grpc://::1:8001", "brackets"),
        ("[::1:8001", "brackets"),
        ("ipv6:::1:8001", "brackets"),
        ("[127.0.0.1]:8001", "IPv6"),
        ("ipv4:host:8001", "IPv4"),
        ("ipv4:[::1]:8001", "IPv4"),
        (":8001", "address"),
        ("two hosts:8001", "address"),
        ("host\t:8001", "address"),
        ("grpc://host/path:1", "address"),
        ("  ", "address"),
        ("10.0.0.1:8001,10.0.0.2:8001", "ipv4:"),
        ("grpc://a:8001,b:8001", "dns:///"),
        ("unix://nima.sock", "unix:///"),
        ("vsock:1:8001", "is not an address"),
    ],
)
def test_what_is_no_address_is_refused_with_a_hint(url: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        NimaClient(url)


@pytest.mark.parametrize("url", ["grpc://me:secret@host:8001", "me:secret@host", "me@host:8001"])
def test_a_password_in_an_address_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="bearer_token") as caught:
        NimaClient(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("0.0.0.0:1", True),
        ("[::1]:1", True),
        ("LOCALHOST:1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("ipv6:[::1]:1", True),
        ("unix:///run/nima.sock", True),
        ("unix-abstract:nima", True),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
        ("xds:///scores", False),
    ],
)
def test_no_proxy_is_asked_for_this_machine(
    target: str, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_local(target) is local
    assert dict(Connection(target).channel_options()).get("grpc.enable_http_proxy", 1) == 1 - local
    monkeypatch.setenv("http_proxy", NOWHERE)
    if local:
        assert proxy_of(target) is None


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"http_proxy": "http://p:1"}, "p:1 ($http_proxy)"),
        ({"http_proxy": "http://u:secret@p:1/"}, "p:1 ($http_proxy)"),
        ({"http_proxy": "http://a:1", "https_proxy": "http://b:1"}, "b:1 ($https_proxy)"),
        ({"https_proxy": "http://b:1", "grpc_proxy": "http://c:1"}, "c:1 ($grpc_proxy)"),
        ({"https_proxy": "http://b:1", "grpc_proxy": ""}, None),
        ({"http_proxy": "https://p:1"}, None),
        ({"http_proxy": "http://p:1", "no_proxy": "x, .example.org"}, None),
        ({"http_proxy": "http://p:1", "no_proxy": "x", "no_grpc_proxy": "example.org"}, None),
        ({"http_proxy": "http://p:1", "no_proxy": "other.org,"}, "p:1 ($http_proxy)"),
    ],
)
def test_the_proxy_is_that_of_grpc(
    variables: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("dns:///scores.example.org:8001") == proxy


def test_networks_are_exceptions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("no_proxy", "10.0.0.0/8")
    assert proxy_of("10.1.2.3:8001") is None
    assert proxy_of("11.1.2.3:8001") == "127.0.0.1:9 ($http_proxy)"


SCRIPT = """
import asyncio, sys
import nima_client
url, path = sys.argv[1:]
print(nima_client.NimaClient(url).score_one(path).mean > 0)
print(asyncio.run(nima_client.AsyncNimaClient(url).score_one(path)).mean > 0)
try:
    from nima_build.triton_client import triton_client
except ModuleNotFoundError:
    print(True)
else:
    print(triton_client(url).get_model_metadata("nima").name == "nima")
"""


@pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy", "https_proxy"])
def test_a_server_on_this_machine_is_reached_past_a_proxy(
    url: str, photo: Make, tmp_path: Any, variable: str
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(0))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, url, str(path)],
        env={**os.environ, variable: NOWHERE},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_an_unreachable_server_behind_a_proxy_names_it(
    caller: Make, photo: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name is the proxy's to resolve: nothing but the loopback is asked.
    monkeypatch.setenv("http_proxy", NOWHERE)
    client = caller("scores.invalid:8001", retry=NO_RETRIES, connect_timeout=5.0)
    with pytest.raises(ConnectError, match=r"proxy 127\.0\.0\.1:9 \(\$http_proxy\)") as caught:
        client.score_one(photo(0))
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("http_proxy")
    with pytest.raises(ConnectError) as caught:
        caller("127.0.0.1:1", retry=NO_RETRIES).score_one(photo(0))
    assert "proxy" not in str(caught.value)
