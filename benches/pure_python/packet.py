"""uTP datagrams (BEP 29, docs/protocol.md section 3): the codec, and the two ways to report holes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

DATA, FIN, STATE, RESET, SYN = range(5)

SELECTIVE_ACK, EXTENSION_BITS, CAPABILITY, RANGES = 1, 2, 0x4B, 0x4C
# Behind id 2, because libutp drops packets whose first extension it does not know (UTP.md 2.1).
CAPABILITIES = ((EXTENSION_BITS, bytes(8)), (CAPABILITY, b"kn\x01\x00"))

Extension = tuple[int, bytes]

_HEADER = struct.Struct(">BBHIIIHH")
_MAX_RANGES = 60


class Packet(NamedTuple):
    kind: int
    connection_id: int
    timestamp: int
    difference: int
    window: int
    seq: int
    ack: int
    extensions: tuple[Extension, ...] = ()
    payload: bytes = b""

    def encode(self) -> bytes:
        first = self.extensions[0][0] if self.extensions else 0
        head = _HEADER.pack(
            self.kind << 4 | 1,
            first,
            self.connection_id & 0xFFFF,
            self.timestamp,
            self.difference,
            self.window,
            self.seq & 0xFFFF,
            self.ack & 0xFFFF,
        )
        if not self.extensions:
            return head + self.payload
        following = [kind for kind, _ in self.extensions[1:]] + [0]
        chain = (bytes((after, len(body))) + body for (_, body), after in zip(self.extensions, following, strict=True))
        return head + b"".join(chain) + self.payload

    def capable(self) -> bool:
        """Whether the sender shows keynet's capability extension, version 1 or later."""
        return any(
            kind == CAPABILITY and len(body) >= 4 and body[:2] == b"kn" and body[2] for kind, body in self.extensions
        )


def decode(data: bytes) -> Packet | None:
    """The packet in a datagram, or None if it is not a well-formed uTP packet."""
    if len(data) < 20 or data[0] & 15 != 1 or data[0] >> 4 > SYN:
        return None
    first, extension, connection_id, timestamp, difference, window, seq, ack = _HEADER.unpack_from(data)
    extensions: list[Extension] = []
    at = 20
    while extension:
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            return None
        body = data[at + 2 : at + 2 + data[at + 1]]
        extensions.append((extension, body))
        extension, at = data[at], at + 2 + len(body)
    return Packet(first >> 4, connection_id, timestamp, difference, window, seq, ack, tuple(extensions), data[at:])


def unwrap(value: int, near: int) -> int:
    """The number congruent to the 16-bit `value` within 2^15 of `near`: numbers inside are never wrapped."""
    return near + ((value - near + 0x8000) & 0xFFFF) - 0x8000


def selective_ack(ack: int, received: Iterable[int], limit: int = 1024) -> Extension:
    """Extension 1: bit i, lowest first, stands for ack + 2 + i. Multiples of 4 bytes, as BEP 29 asks."""
    offsets = [seq - ack - 2 for seq in received if seq - ack - 2 < limit]
    body = bytearray((max(offsets, default=0) // 32 + 1) * 4)
    for offset in offsets:
        body[offset >> 3] |= 1 << (offset & 7)
    return SELECTIVE_ACK, bytes(body)


def received_ranges(received: Sequence[int], latest: int) -> Extension:
    """Extension 0x4C, the range with `latest` (what arrived last) first, then from the newest down."""
    ranges: list[tuple[int, int]] = []
    for seq in sorted(received):
        if ranges and ranges[-1][1] == seq:
            ranges[-1] = (ranges[-1][0], seq + 1)
        else:
            ranges.append((seq, seq + 1))
    ranges.sort(key=lambda r: (r[0] <= latest < r[1], r[0]), reverse=True)
    return RANGES, b"".join(struct.pack(">HH", a & 0xFFFF, b & 0xFFFF) for a, b in ranges[:_MAX_RANGES])


def acknowledged(packet: Packet, ack: int, sent_up_to: int) -> Iterator[int]:
    """Sequence numbers beyond `ack` that a packet reports as received; nothing at or past `sent_up_to`."""
    for kind, body in packet.extensions:
        if kind == SELECTIVE_ACK:
            for i in range(min(len(body) * 8, sent_up_to - ack - 2)):
                if body[i >> 3] >> (i & 7) & 1:
                    yield ack + 2 + i
        elif kind == RANGES and len(body) % 4 == 0:
            for first, after in struct.iter_unpack(">HH", body):
                start = unwrap(first, ack)
                yield from range(max(start, ack + 1), min(unwrap(after, start), sent_up_to))
