"""One BitTorrent conversation (BEP 3) over any stream: enough to carry data both ways with libtorrent.

Both sides hold one half of the pieces of a file and want the other half. Works on a (reader, writer) pair of
asyncio, and on a pure_python Stream given twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
from typing import Protocol

PIECE, BLOCK = 1 << 18, 1 << 14
PIPELINE = 128  # requests under way
CHOKE, UNCHOKE, INTERESTED, NOT_INTERESTED, HAVE, BITFIELD, REQUEST, PIECE_DATA = range(8)
PEER_ID = b"-KN0001-interop00000"


class Reader(Protocol):
    async def read(self, n: int, /) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...


def content(pieces: int) -> bytes:
    """The file that both sides know: the same for the same number of pieces."""
    return random.Random(pieces).randbytes(pieces * PIECE)


def metainfo(data: bytes) -> tuple[bytes, bytes]:
    """A version 1 torrent of a file called `blob`, and its info hash."""
    hashes = b"".join(hashlib.sha1(data[at : at + PIECE]).digest() for at in range(0, len(data), PIECE))
    info = b"d6:lengthi%de4:name4:blob12:piece lengthi%de6:pieces%d:%be" % (
        len(data),
        PIECE,
        len(hashes),
        hashes,
    )
    return b"d4:info%be" % info, hashlib.sha1(info).digest()


class Conversation:
    """Holds the second half of the pieces; `run` returns the first half as it came from the peer."""

    def __init__(self, reader: Reader, writer: Writer, data: bytes) -> None:
        self._reader, self._writer, self._data = reader, writer, data
        self._buffer = bytearray()
        self._pieces = len(data) // PIECE
        self._half = self._pieces // 2
        self._wanted = [(p, b) for p in range(self._half) for b in range(0, PIECE, BLOCK)]
        self._got = bytearray(self._half * PIECE)
        self._missing = len(self._wanted)
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.served = 0

    async def run(self, dialler: bool) -> bytes:
        """Exchanges both halves: ends when all is here and all of the other half was sent."""
        handshake = b"\x13BitTorrent protocol" + bytes(8) + metainfo(self._data)[1] + PEER_ID
        if dialler:
            self._writer.write(handshake)
        theirs = await self._exactly(68)
        assert theirs[:20] == handshake[:20], "not a BitTorrent handshake"
        assert theirs[28:48] == handshake[28:48], "another torrent"
        if not dialler:
            self._writer.write(handshake)
        bits = "".join("1" if p >= self._half else "0" for p in range(self._pieces)).ljust(
            -(-self._pieces // 8) * 8, "0"
        )
        self._send(BITFIELD, int(bits, 2).to_bytes(len(bits) // 8, "big"))
        self._send(INTERESTED)
        self._send(UNCHOKE)
        answering = asyncio.ensure_future(self._answer())
        try:
            while self._missing or self.served < (self._pieces - self._half) * PIECE:
                size = int.from_bytes(await self._exactly(4), "big")
                if size:
                    self._handle(await self._exactly(size))
            await self._answers.join()
        finally:
            answering.cancel()
        return bytes(self._got)

    def _handle(self, message: bytes) -> None:
        kind, body = message[0], message[1:]
        if kind == UNCHOKE:
            for _ in range(PIPELINE):
                self._ask()
        elif kind == REQUEST:
            piece, begin, size = struct.unpack(">III", body)
            assert piece >= self._half, "asked for a piece that we said we do not have"
            self._answers.put_nowait(body[:8] + self._data[piece * PIECE + begin :][:size])
            self.served += size
        elif kind == PIECE_DATA:
            piece, begin = struct.unpack_from(">II", body)
            self._got[piece * PIECE + begin : piece * PIECE + begin + BLOCK] = body[8:]
            self._missing -= 1
            self._ask()

    def _ask(self) -> None:
        if self._wanted:
            piece, begin = self._wanted.pop(0)
            self._send(REQUEST, struct.pack(">III", piece, begin, BLOCK))

    async def _answer(self) -> None:
        while True:
            self._send(PIECE_DATA, await self._answers.get())
            await self._writer.drain()
            self._answers.task_done()

    def _send(self, kind: int, body: bytes = b"") -> None:
        self._writer.write(struct.pack(">IB", len(body) + 1, kind) + body)

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            more = await self._reader.read(1 << 16)
            if not more:
                raise ConnectionResetError("the peer ended the stream")
            self._buffer += more
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data
