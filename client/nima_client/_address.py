"""Addresses of servers: what is one, which are on this machine, and which proxy is in between."""

from __future__ import annotations

import ipaddress
import os

from nima_client import _defaults

_OWN_SCHEMES = ("dns://", "unix://", "unix-abstract://", "xds://")
_PATHS = ("unix:", "unix-abstract:")
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY = ("no_grpc_proxy", "no_proxy")


def normalise_url(url: str) -> tuple[str, bool]:
    """A gRPC target, and whether the scheme asks for TLS.

    Args:
        url: ``host:port``, ``grpc://host:port``, ``grpcs://host:port`` or a gRPC target such as
            ``dns:///name:port`` or ``ipv4:10.0.0.1:8001,10.0.0.2:8001``; IPv6 in brackets,
            ``[::1]:8001``. Blanks around it do not count.

    Raises:
        ValueError: an HTTP address, a path, no port or an impossible one, IPv6 without brackets;
            says what is expected.
    """
    url = url.strip()
    if "://" in url and not url.startswith(_OWN_SCHEMES):
        scheme, _, target = url.partition("://")
        if scheme in ("http", "https"):
            raise ValueError(
                f"{url!r} is an HTTP address: the client speaks gRPC, on Triton's port 8001; "
                "pass host:port, or grpcs://host:port for TLS"
            )
        if scheme not in ("grpc", "grpcs"):
            raise ValueError(f"unknown scheme {scheme!r} in {url!r}: use grpc:// or grpcs://")
        target = target.rstrip("/")
    else:
        scheme, target = "", url
    if not target:
        raise ValueError(f"{url!r} is not an address: pass host:port, e.g. {_defaults.URL}")
    if target.startswith("unix://") and not target.startswith("unix:///"):
        raise ValueError(f"{url!r} is not an address: write unix:///PATH, or unix:PATH")
    for host, port in endpoints(target):
        _check_host(host, port, target, url)
        _check_port(port, url)
    return target, scheme == "grpcs"


def endpoints(target: str) -> list[tuple[str, str]]:
    """Host (IPv6 without its brackets) and port of each address that a gRPC target names.

    Either is empty where it is missing. Sockets with a path and ``xds:`` name none.
    """
    scheme, colon, rest = target.partition(":")
    if target.startswith((*_PATHS, "xds:")):
        return []
    if colon and scheme in ("ipv4", "ipv6"):
        return [_split(address) for address in rest.lstrip("/").split(",")]
    if colon and scheme == "dns":
        # dns:name:port, dns:///name:port; a name server may stand before the last slash.
        return [_split(rest.rpartition("/")[2] if rest.startswith("//") else rest)]
    return [_split(target)]


def is_local(target: str) -> bool:
    """Whether all of a gRPC target is on this machine: loopback addresses, or a socket's path."""
    if target.startswith(_PATHS):
        return True
    hosts = [host for host, _ in endpoints(target)]
    return bool(hosts) and all(map(_is_loopback, hosts))


def proxy_of(target: str) -> str | None:
    """The HTTP proxy through which gRPC dials, as ``host:port ($variable)``; None for none.

    As gRPC reads its environment: the first of ``grpc_proxy``, ``https_proxy`` and ``http_proxy``
    that is set, unless ``no_grpc_proxy``, else ``no_proxy``, has the host. Never for what
    :func:`is_local` (``Connection.channel_options`` sees to that).
    """
    variable = next((name for name in _PROXY_VARIABLES if name in os.environ), None)
    hosts = [host for host, _ in endpoints(target)]
    if variable is None or not hosts or is_local(target):
        return None
    scheme, _, proxy = os.environ[variable].partition("://")
    if scheme != "http":  # gRPC knows no other, and then dials the server itself
        return None
    exceptions = next((os.environ[name] for name in _NO_PROXY if name in os.environ), "")
    rules = [rule.strip() for rule in exceptions.split(",")]
    if any(_is_excepted(host, rule) for rule in rules for host in hosts):
        return None
    # Without the user and password that it may hold.
    return f"{proxy.rpartition('@')[2].rstrip('/')} (${variable})"


def _split(address: str) -> tuple[str, str]:
    if address.startswith("[") and "]" in address:
        host, _, port = address[1:].partition("]")
        return host, port[1:] if port.startswith(":") else port
    host, colon, port = address.rpartition(":")
    return (host, port) if colon else (address, "")


def _check_host(host: str, port: str, target: str, url: str) -> None:
    if "@" in host + port:  # not repeated: it may be a password
        raise ValueError("an address has no user in it: pass headers or bearer_token")
    if "," in host:
        raise ValueError(
            f"{url!r} is not one address: for several write ipv4:10.0.0.1:8001,10.0.0.2:8001, or "
            "the one name that they have, dns:///NAME:8001"
        )
    bracketed = (f"[{host}]:{port}" if port else f"[{host}]") in target
    bare = ":" in host and not bracketed
    if bare and ("[" in host or "::" in target or host.count(":") > 1):
        raise ValueError(
            f"{url!r} has an IPv6 address without brackets: write [address]:port, e.g. [::1]:8001"
        )
    if bare or not host or "/" in host or " " in host or not host.isprintable():
        raise ValueError(f"{url!r} is not an address: pass host:port, e.g. {_defaults.URL}")
    if bracketed or target.startswith(("ipv4:", "ipv6:")):
        version = 4 if target.startswith("ipv4:") else 6
        try:
            known = int(ipaddress.ip_address(host).version)
        except ValueError:
            known = 0
        if known != version:
            raise ValueError(f"{url!r} is not an address: {host!r} is no IPv{version} address")


def _check_port(port: str, url: str) -> None:
    if not port:
        raise ValueError(f"{url!r} has no port: Triton's gRPC port is 8001 unless told otherwise")
    digits = port.isascii() and port.isdecimal() and len(port) <= 5
    if not (digits and 1 <= int(port) <= 65535):
        raise ValueError(f"{url!r} has no usable port: {port!r} is not a number from 1 to 65535")


def _is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _is_excepted(host: str, rule: str) -> bool:
    if not rule:
        return False
    try:
        if ipaddress.ip_address(host) in ipaddress.ip_network(rule, strict=False):
            return True
    except ValueError:
        pass
    return host.lower().endswith(rule.lower())
