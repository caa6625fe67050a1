"""Requests that pages in a browser have sent, to servers on this machine that are for programs.

A page on the internet can have the browser ask `http://127.0.0.1:PORT`, and with a name of its own that it lets point
there (DNS rebinding) it can read the answer as well. Such requests name a host that is none of the server's, or say
that they come from elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

__all__ = ["refusal"]


def refusal(host: str, origin: str, fetch_site: str, *, names: Collection[str]) -> str | None:
    """Why a request is not answered; None: it is.

    `host`, `origin`, `fetch_site`: its header fields Host, Origin and Sec-Fetch-Site, empty where it has none.
    `names`: hosts by which the server may be asked for beside addresses, `localhost` and the name of the machine; "*"
    for all.
    """
    if "*" in names:
        return None
    if host and not _is_ours(_without_port(host), names):
        # an address in numbers cannot be made to point elsewhere: only names are judged
        return f"this server is not called {_shown(host)}: ask for its address, or have it answer to that name as well"
    if fetch_site in ("cross-site", "same-site"):
        return "a page of another site asks, in a browser"
    if origin and _without_port(origin.partition("://")[2]) != _without_port(host):
        return f"a page of {_shown(origin)} asks, in a browser"
    return None


def _is_ours(host: str, names: Collection[str]) -> bool:
    if host == "localhost" or host.endswith(".localhost") or host in {name.lower().rstrip(".") for name in names}:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == socket.gethostname().lower()
    return True


def _without_port(text: str) -> str:
    text = text.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def _shown(text: str) -> str:
    return repr(text[:80])
