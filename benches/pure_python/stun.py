"""Ping and pong: STUN Binding requests and responses (RFC 8489, docs/protocol.md section 2)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import struct
from typing import NamedTuple

_COOKIE = 0x2112A442
_REQUEST, _RESPONSE = 0x0001, 0x0101
_USERNAME, _INTEGRITY, _XOR_MAPPED, _PADDING = 0x0006, 0x001C, 0x0020, 0x8026
# How much longer a pong can be than a bare ping: XOR-MAPPED-ADDRESS of IPv6.
_PONG_GROWTH = 4 + 20


class PingKeys(NamedTuple):
    """What a TLS session gives both nodes to recognise each other's pings."""

    key: bytes
    local_name: str
    remote_name: str


class Message(NamedTuple):
    kind: int
    transaction: bytes
    attributes: dict[int, bytes]
    integrity_at: int  # where MESSAGE-INTEGRITY-SHA256 begins, 0 if absent
    raw: bytes

    def signed_with(self, key: bytes) -> bool:
        if not self.integrity_at or len(self.attributes[_INTEGRITY]) != 32:
            return False
        return hmac.compare_digest(_mac(self.raw[: self.integrity_at], key), self.attributes[_INTEGRITY])


def is_stun(data: bytes) -> bool:
    if len(data) < 20 or data[0] >= 0x40 or data[4:8] != b"\x21\x12\xa4\x42":
        return False
    length = int.from_bytes(data[2:4], "big")
    return length % 4 == 0 and length == len(data) - 20


def decode(data: bytes) -> Message | None:
    """The message in a datagram that `is_stun`, or None if its attributes are malformed."""
    attributes: dict[int, bytes] = {}
    at, integrity_at = 20, 0
    while at < len(data):
        if at + 4 > len(data):
            return None
        kind, length = struct.unpack_from(">HH", data, at)
        if at + 4 + length > len(data):
            return None
        if kind == _INTEGRITY and not integrity_at:
            integrity_at = at
        attributes.setdefault(kind, data[at + 4 : at + 4 + length])
        at += 4 + (length + 3 & ~3)
    return Message(int.from_bytes(data[:2], "big"), data[8:20], attributes, integrity_at, data)


def ping(transaction: bytes, keys: PingKeys | None = None) -> bytes:
    """A Binding request, padded so that the pong is not larger."""
    body = _attribute(_PADDING, bytes(_PONG_GROWTH))
    if keys:
        body = _attribute(_USERNAME, keys.remote_name.encode()) + body
    return _message(_REQUEST, transaction, body, keys.key if keys else None)


def pong(request: bytes, source: tuple[str, int], sessions: dict[str, PingKeys]) -> bytes | None:
    """The answer to a ping from `source`.

    None when it must not be answered: unknown name, wrong MAC, no room for a pong that is no larger.
    """
    message = decode(request)
    if message is None or message.kind != _REQUEST:
        return None
    key = None
    if _USERNAME in message.attributes:
        keys = sessions.get(message.attributes[_USERNAME].decode("latin-1"))
        if keys is None or not message.signed_with(keys.key):
            return None
        key = keys.key
    elif message.integrity_at:
        return None
    answer = _message(_RESPONSE, message.transaction, _attribute(_XOR_MAPPED, _xored(source, message.transaction)), key)
    return answer if len(answer) <= len(request) else None


def observed(message: Message) -> tuple[str, int] | None:
    """The address in a pong's XOR-MAPPED-ADDRESS."""
    value = message.attributes.get(_XOR_MAPPED, b"")
    if message.kind != _RESPONSE or len(value) not in (8, 20):
        return None
    mask = struct.pack(">I", _COOKIE) + message.transaction
    address = bytes(a ^ b for a, b in zip(value[4:], mask, strict=False))
    return str(ipaddress.ip_address(address)), int.from_bytes(value[2:4], "big") ^ _COOKIE >> 16


def _xored(source: tuple[str, int], transaction: bytes) -> bytes:
    ip = ipaddress.ip_address(source[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    mask = struct.pack(">I", _COOKIE) + transaction
    address = bytes(a ^ b for a, b in zip(ip.packed, mask, strict=False))
    return struct.pack(">BBH", 0, 1 if ip.version == 4 else 2, source[1] ^ _COOKIE >> 16) + address


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _message(kind: int, transaction: bytes, body: bytes, key: bytes | None) -> bytes:
    raw = struct.pack(">HHI", kind, len(body), _COOKIE) + transaction + body
    return raw if key is None else _with_length(raw) + _attribute(_INTEGRITY, _mac(raw, key))


def _mac(raw: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _with_length(raw), hashlib.sha256)


def _with_length(raw: bytes) -> bytes:
    """The header's length counts the integrity attribute that is about to follow (RFC 8489 section 14.6)."""
    return raw[:2] + struct.pack(">H", len(raw) - 20 + 36) + raw[4:]
