"""Checks of a request's origin: allowed host names, origins of pages, and trusted proxies."""

import ipaddress
import re

from starlette.datastructures import Headers

from sprat.errors import SpratError
from sprat.serve.refusals import Refused

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s\[\]:/?#@,]+)(:\d{1,5})?")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def parse_hosts(text: str) -> frozenset[str] | None:
    """Return the host names that requests may use, including loopback names; None for any.

    Args:
        text: names or addresses without ports, separated by commas; or "*".

    Raises:
        SpratError: one of them is not a name.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["*"]:
        return None
    for name in names:
        bare = name if ":" not in name or name.startswith("[") else f"[{name}]"
        if "*" in name or not (found := HOST.fullmatch(bare)) or found[2]:
            raise SpratError(
                f"--allowed-hosts has {name!r}, expected names or addresses without http:// and "
                "port, separated by commas, or '*' alone. Give a name such as example.org."
            )
    return LOOPBACK_NAMES | {name.strip("[]") for name in names}


def parse_proxies(text: str) -> list[Network]:
    """Return the addresses and networks whose X-Forwarded-For is trusted.

    Raises:
        SpratError: one is not an address, or they include all clients, which could then claim any
            address.
    """
    networks = []
    for word in filter(None, map(str.strip, text.split(","))):
        try:
            network = ipaddress.ip_network(word, strict=False)
        except ValueError:
            network = None
        if network is None or not network.prefixlen:
            raise SpratError(
                f"--trusted-proxies has {word!r}, expected addresses or networks of your own "
                "proxies, because a trusted proxy can claim any address. Give an address such as "
                "10.0.0.2."
            )
        networks.append(network)
    return networks


def check_host(headers: Headers, allowed: frozenset[str] | None) -> None:
    """Refuse a request whose Host header is not one of the server's names.

    This stops DNS rebinding: a foreign page whose name is made to resolve to this machine.
    """
    if allowed is None:
        return
    hosts = headers.getlist("host")
    found = HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
    if found is None or found[1].strip("[]").rstrip(".") not in allowed:
        words = (
            "The Host header names another server. Use this server's own name, or see "
            "--allowed-hosts."
        )
        raise Refused(400, "host", words)


def check_origin(method: str, headers: Headers) -> None:
    """Refuse a request that a browser sends for a page of another origin.

    Other programs send neither header.
    """
    if method in SAFE_METHODS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        # the origin is scheme://host:port, or "null"
        own = (
            origin is None or origin.lower().partition("://")[2] == headers.get("host", "").lower()
        )
    if not own:
        words = "The request comes from a page of another origin. Use the server's own page."
        raise Refused(403, "origin", words)
