"""Attacks of who only sends datagrams: from addresses of its own, or in the names of others."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from typing import Any

from attack import Attack, addresses
from wire import Forger

from benches.pure_python.packet import CAPABILITIES, DATA, FIN, RESET, STATE, SYN, Packet, decode
from benches.pure_python.stun import ping

# a record that promises a ClientHello of 512 bytes, and its first byte
FIRST_BYTES = {"a byte": b"\x16", "a promise": b"\x16\x03\x01\x02\x00\x01", "no TLS": b"GET / HTTP/1.1\r\n\r\n"}
SOCKETS_OF_A_SOURCE = 4
# datagrams that an observer has to repeat
REMEMBERED = 2_000


class Handshakes(Attack):
    """Connections that begin and say next to nothing: `says` is of `FIRST_BYTES`, or nothing."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        per_network = int(self.options.get("per_network", 1))
        hosts = list(addresses(-(-self.sources // per_network), per_network))[: self.sources]
        mouths = []
        for host in hosts * SOCKETS_OF_A_SOURCE:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Mouth(self), local_addr=(host, 0), remote_addr=self.where.socket
            )
            mouths.append(transport)
        async for number in self.paced():
            packet = _packet(SYN, random.getrandbits(16), random.getrandbits(16), 0)
            mouths[number % len(mouths)].sendto(packet)
            self.counts["syns"] += 1
        for mouth in mouths:
            mouth.close()


class _Mouth(asyncio.DatagramProtocol):
    """Answers each SYN-ACK with the first byte."""

    def __init__(self, attack: Handshakes) -> None:
        self._counts = attack.counts
        self._says = FIRST_BYTES.get(str(attack.options.get("says", "")), b"")

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, _: object) -> None:
        packet = decode(data)
        if packet is None:
            return
        self._counts["resets" if packet.kind == RESET else "answers"] += 1
        if packet.kind == STATE and self._says:
            # the SYN-ACK consumes no number, and acknowledges that of the SYN
            first = _packet(DATA, packet.connection_id + 1, packet.ack + 1, packet.seq - 1, self._says)
            self._transport.sendto(first)
            self._counts["first_bytes"] += 1


class Forgeries(Attack):
    """uTP of every kind in the name of an honest peer: what somebody off the path can guess is ports, and no numbers.

    `claimed` is the peer's address; with `knows_port` also its port is known.
    """

    async def run(self) -> None:
        forger = Forger()
        claimed = str(self.options["claimed"])
        ports = self.options.get("ports") or range(1024, 65536)
        async for _ in self.paced():
            kind = random.choice((RESET, RESET, FIN, DATA, STATE, SYN))
            payload = os.urandom(random.choice((1, 64, 1000))) if kind == DATA else b""
            number = (random.getrandbits(16) for _ in range(3))
            packet = _packet(kind, next(number), next(number), next(number), payload)
            self.counts["sent"] += forger.send((claimed, random.choice(ports)), self.where.socket, packet)
        forger.close()


class Mirrors(Attack):
    """Whatever is answered, in the name of a third party."""

    async def run(self) -> None:
        forger = Forger()
        async for number in self.paced():
            kind = number % 4
            if kind == 0:
                payload = _packet(SYN, random.getrandbits(16), random.getrandbits(16), 0, capable=number % 8 == 0)
            elif kind == 1:
                payload = ping(os.urandom(12))
            elif kind == 2:
                payload = _packet(random.choice((DATA, STATE, FIN)), random.getrandbits(16), 1, 1)
            else:
                payload = bytes([0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42]) + os.urandom(12)
            source = (f"21.0.0.{1 + number % 250}" if self.options.get("many") else "21.0.0.1", 1024 + number % 60000)
            if forger.send(source, self.where.socket, payload):
                self.counts["sent"] += 1
                self.counts["bytes"] += 28 + len(payload)
        forger.close()


class Garbage(Attack):
    """Random datagrams, and genuine ones that were changed, from addresses of its own."""

    async def run(self) -> None:
        forger = Forger()
        sources = list(addresses(self.sources, 4))
        async for number in self.paced():
            payload = bytearray(_something(number))
            for _ in range(random.choice((0, 0, 1, 3))):
                if payload:
                    payload[random.randrange(len(payload))] = random.getrandbits(8)
            cut = random.choice((len(payload), len(payload), random.randint(0, len(payload))))
            source = (random.choice(sources), random.randint(1, 65535))
            self.counts["sent"] += forger.send(source, self.where.socket, bytes(payload[:cut]))
        forger.close()


class Replays(Attack):
    """An observer on the path who repeats what he has seen, from addresses of his own and in the name of the peer.

    To be run where the datagrams pass by. `claimed` is the peer's address.
    """

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        ear.setblocking(False)
        seen: list[bytes] = []
        loop.add_reader(ear, self._listen, ear, seen)
        forger, claimed = Forger(), str(self.options["claimed"])
        sources = [*addresses(self.sources, 1), claimed]
        async for _ in self.paced():
            if seen:
                source = (random.choice(sources), random.randint(1024, 65535))
                self.counts["sent"] += forger.send(source, self.where.socket, random.choice(seen))
        loop.remove_reader(ear)
        ear.close()
        forger.close()

    def _listen(self, ear: socket.socket, seen: list[bytes]) -> None:
        to = socket.inet_aton(self.where.socket[0])
        claimed = socket.inet_aton(str(self.options["claimed"]))
        for _ in range(64):
            try:
                packet = ear.recv(2048)
            except BlockingIOError:
                return
            payload = packet[28:]
            # what the peer itself sent, and no copy of ours; pings before all else
            if packet[9] != 17 or packet[12:16] != claimed or packet[16:20] != to or len(seen) >= REMEMBERED:
                continue
            kind = _kind(payload)
            if kind in self.options.get("only", [kind]) and (kind != "data" or random.random() < 0.05):
                self.counts[kind] += 1
                seen.append(payload)


def _kind(payload: bytes) -> str:
    """What a datagram of a node is, by its first bytes (docs/protocol.md section 1)."""
    if payload[:1] in b"\0\x01" and payload[4:8] == b"\x21\x12\xa4\x42":
        return {1: "ping", 0x11: "goodbye", 0x101: "pong"}.get(int.from_bytes(payload[:2], "big"), "other")
    return ("data", "fin", "state", "reset", "syn")[min(payload[0] >> 4, 4)] if payload else "other"


def _something(number: int) -> bytes:
    which = number % 4
    if which == 0:
        return os.urandom(random.choice((0, 1, 19, 20, 44, 92, 548, 1400)))
    if which == 1:
        return ping(os.urandom(12))
    if which == 2:
        kind = random.choice((SYN, DATA, STATE, FIN, RESET, 5, 15))
        return _packet(kind, *(random.getrandbits(16) for _ in range(3)), os.urandom(random.choice((0, 1, 100))))
    # a keyed ping as it looks: USERNAME of a session, and a MAC
    session = b"".join(b"%02x" % random.getrandbits(8) for _ in range(16))
    body = b"\0\x06\0\x20" + session + b"\0\x1c\0\x20" + os.urandom(32)
    return b"\0\x01" + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + os.urandom(12) + body


def _packet(kind: int, connection: int, seq: int, ack: int, payload: bytes = b"", *, capable: bool = True) -> bytes:
    extensions = CAPABILITIES if kind == SYN and capable else ()
    stamp = random.getrandbits(32) or 1
    return Packet(kind, connection & 0xFFFF, stamp, 0, 1 << 20, seq, ack, extensions, payload).encode()


ATTACKS: dict[str, type[Attack]] = {
    "handshakes": Handshakes,
    "forgeries": Forgeries,
    "mirrors": Mirrors,
    "garbage": Garbage,
    "replays": Replays,
}
