"""Open, Accepted, Refused: the first exchange on a stream (docs/protocol.md section 5)."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

from .identity import node_key

OPEN, ACCEPTED, REFUSED = 1, 2, 3
NODE_OPTION, PRIORITY_OPTION = 1, 2
MAX_MESSAGE, MAX_TEXT = 1024, 512

# name -> (code in Refused, HTTP status, RFC 9209 type): the part of rust/src/error.rs that this node can meet
REASONS: dict[str, tuple[int, int, str]] = {
    "bad_request": (20, 400, "http_protocol_error"),
    "bad_target": (21, 400, "http_protocol_error"),
    "method_not_allowed": (22, 405, "http_protocol_error"),
    "credentials_required": (23, 407, "http_request_denied"),
    "head_too_large": (24, 431, "http_request_denied"),
    "head_timeout": (25, 408, "http_request_denied"),
    "unknown_node": (40, 404, "destination_not_found"),
    "connect_timeout": (42, 504, "connection_timeout"),
    "connect_refused": (43, 502, "connection_refused"),
    "tls_failed": (60, 502, "tls_protocol_error"),
    "tls_timeout": (61, 504, "connection_timeout"),
    "identity_mismatch": (62, 502, "tls_certificate_error"),
    "certificate_missing": (63, 502, "tls_certificate_error"),
    "certificate_invalid": (64, 502, "tls_certificate_error"),
    "certificate_expired": (65, 502, "tls_certificate_error"),
    "chain_broken": (66, 502, "tls_certificate_error"),
    "chain_too_long": (67, 502, "tls_certificate_error"),
    "name_mismatch": (68, 502, "tls_certificate_error"),
    "access_denied": (80, 403, "http_request_denied"),
    "service_not_found": (81, 404, "destination_not_found"),
    "service_refused": (82, 502, "connection_refused"),
    "service_timeout": (83, 504, "connection_timeout"),
    "protocol_violation": (85, 502, "destination_unavailable"),
    "open_timeout": (86, 504, "connection_timeout"),
    "peer_reset": (101, 502, "connection_terminated"),
}
_NAMES = {code: name for name, (code, _, _) in REASONS.items()}


class Refused(Exception):
    """A stream or a CONNECT that does not come about, and why: `reason` is a name of rust/src/error.rs."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text)
        self.reason = reason


def encode_open(port: int, node: str) -> bytes:
    return _framed(struct.pack(">BHBH", OPEN, port, NODE_OPTION, 32) + node_key(node))


def encode_accepted() -> bytes:
    return _framed(bytes([ACCEPTED]))


def encode_refused(reason: str, text: str) -> bytes:
    return _framed(struct.pack(">BH", REFUSED, REASONS[reason][0]) + text.encode()[:MAX_TEXT])


async def read_message(read: Callable[[int], Awaitable[bytes]]) -> bytes:
    """One message, without its length. Raises Refused("protocol_violation")."""
    size = int.from_bytes(await _exactly(read, 2), "big")
    if not 1 <= size <= MAX_MESSAGE:
        raise Refused("protocol_violation", f"a message of {size} bytes")
    return await _exactly(read, size)


def decode_open(message: bytes) -> tuple[int, str]:
    """Service port, and the hex of the node key that the dialler believes it talks to ("" if unsaid)."""
    if message[0] != OPEN or len(message) < 3:
        raise Refused("protocol_violation", "not an Open")
    options = _options(message[3:])
    return int.from_bytes(message[1:3], "big"), options.get(NODE_OPTION, b"").hex()


def check_answer(message: bytes) -> None:
    """Returns if the stream is accepted, raises Refused with the peer's reason otherwise."""
    if message[0] == ACCEPTED:
        _options(message[1:])
        return
    if message[0] != REFUSED or len(message) < 3:
        raise Refused("protocol_violation", "neither Accepted nor Refused")
    code, text = int.from_bytes(message[1:3], "big"), message[3:].decode(errors="replace")
    raise (Refused(_NAMES[code], text) if code in _NAMES else Refused("protocol_violation", f"reason {code}: {text}"))


def _options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    while data:
        if len(data) < 3 or len(data) < 3 + int.from_bytes(data[1:3], "big") or data[0] in options:
            raise Refused("protocol_violation", "malformed options")
        end = 3 + int.from_bytes(data[1:3], "big")
        options[data[0]], data = data[3:end], data[end:]
    return options


def _framed(message: bytes) -> bytes:
    return struct.pack(">H", len(message)) + message


async def _exactly(read: Callable[[int], Awaitable[bytes]], size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await read(size - len(data))
        if not more:
            raise Refused("protocol_violation", "the stream ended inside a message")
        data += more
    return data
