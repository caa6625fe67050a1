"""HTTP CONNECT, as the forward proxy reads and answers it (docs/protocol.md section 6)."""

from __future__ import annotations

import base64
import hmac
import re
from typing import NamedTuple
from urllib.parse import parse_qs

from .identity import node_key
from .opening import REASONS, Refused

MAX_HEAD = 16 << 10
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Target(NamedTuple):
    node: str
    port: int
    address: tuple[str, int] | None = None


_ADDRESSED = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})/\?([\x21-\x7e]+)")


def parse(head: bytes, credentials: tuple[str, str]) -> Target:
    """The target of a complete request head (up to and with its empty line). Raises Refused."""
    lines = head.decode("latin-1").split("\r\n")
    request = lines[0].split(" ")
    if len(request) != 3 or not re.fullmatch(r"HTTP/1\.[01]", request[2]):
        raise Refused("bad_request", "not an HTTP/1 request")
    expected = b"Basic " + base64.b64encode(":".join(credentials).encode())
    shown = [line.partition(":")[2].strip() for line in lines[1:] if line.lower().startswith("proxy-authorization:")]
    if len(shown) != 1 or not hmac.compare_digest(shown[0].encode("latin-1"), expected):
        raise Refused("credentials_required", "Proxy-Authorization is missing or wrong")
    if request[0] != "CONNECT":
        raise Refused("method_not_allowed", "only CONNECT is understood")
    return _target(request[1])


def refusal(reason: str, text: str) -> bytes:
    _, status, kind = REASONS[reason]
    said = re.sub(r'[^\x20-\x7e]|["\\]', "?", f"{reason}: {text}")[:500]
    headers = [
        f"HTTP/1.1 {status} {said[:200]}",
        f'Proxy-Status: keynet; error={kind}; details="{said}"',
        "Content-Type: text/plain",
        f"Content-Length: {len(said) + 1}",
        "Connection: close",
    ]
    if status == 407:
        headers.append('Proxy-Authenticate: Basic realm="keynet"')
    return "\r\n".join([*headers, "", said + "\n"]).encode()


def _target(text: str) -> Target:
    try:
        if match := re.fullmatch(r"([A-Za-z0-9]+)\.keynet:(\d{1,5})", text, re.IGNORECASE):
            return Target(_node(match[1]), _port(match[2]))
        if match := _ADDRESSED.fullmatch(text):
            query = parse_qs(match[4], strict_parsing=True)
            service = query.get("service", ["0"])
            return Target(_node(query["nodeId"][0]), _port(service[0]), (match[1] or match[2], _port(match[3])))
    except (ValueError, KeyError) as e:
        raise Refused("bad_target", str(e)) from e
    raise Refused("bad_target", "the target is not <node id>.keynet:<service port>")


def _node(text: str) -> str:
    node_key(text)
    return text.lower()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"{text!r} is no port")
    return int(text)
