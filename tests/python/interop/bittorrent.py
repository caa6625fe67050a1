"""One BitTorrent conversation (BEP 3) over any stream: enough to carry data both ways with another program.

The peer holds the first pieces of a file and we the rest; each wants what the other has. Works on a (reader, writer)
pair of asyncio, and on a pure_python Stream given twice.
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


def content(size: int) -> bytes:
    """The file that both sides know: the same for the same size."""
    return random.Random(size).randbytes(size)


def pieces(size: int) -> int:
    return -(-size // PIECE)


def metainfo(data: bytes, announce: str = "") -> tuple[bytes, bytes]:
    """A version 1 torrent of a file called `blob`, and its info hash."""
    hashes = b"".join(hashlib.sha1(data[at : at + PIECE]).digest() for at in range(0, len(data), PIECE))
    info = b"d6:lengthi%de4:name4:blob12:piece lengthi%de6:pieces%d:%be" % (
        len(data),
        PIECE,
        len(hashes),
        hashes,
    )
    tracker = b"8:announce%d:%b" % (len(announce), announce.encode()) if announce else b""
    return b"d%b4:info%be" % (tracker, info), hashlib.sha1(info).digest()


class Conversation:
    """The peer holds the first `theirs` pieces; `run` returns them as they came from it."""

    def __init__(self, reader: Reader, writer: Writer, data: bytes, theirs: int) -> None:
        self._reader, self._writer, self._data = reader, writer, data
        self._buffer = bytearray()
        self._pieces, self._theirs = pieces(len(data)), theirs
        ours_from = min(theirs * PIECE, len(data))
        self.expected = data[:ours_from]
        self._missing = set(range(0, ours_from, BLOCK))
        self._wanted = sorted(self._missing)
        self._got = bytearray(ours_from)
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._unserved = set(range(ours_from, len(data), BLOCK))

    async def run(self, dialler: bool) -> bytes:
        """Ends when all that the peer had is here and all the rest was sent."""
        handshake = b"\x13BitTorrent protocol" + bytes(8) + metainfo(self._data)[1] + PEER_ID
        if dialler:
            self._writer.write(handshake)
        theirs = await self._exactly(68)
        assert theirs[:20] == handshake[:20], "not a BitTorrent handshake"
        assert theirs[28:48] == handshake[28:48], "another torrent"
        if not dialler:
            self._writer.write(handshake)
        bits = "".join("1" if p >= self._theirs else "0" for p in range(self._pieces)).ljust(
            -(-self._pieces // 8) * 8, "0"
        )
        self._send(BITFIELD, int(bits, 2).to_bytes(len(bits) // 8, "big"))
        self._send(INTERESTED)
        self._send(UNCHOKE)
        answering = asyncio.ensure_future(self._answer())
        try:
            while self._missing or self._unserved:
                size = int.from_bytes(await self._exactly(4), "big")
                if size:
                    self._handle(await self._exactly(size))
            await self._answers.join()
        finally:
            answering.cancel()
        return bytes(self._got)

    def _handle(self, message: bytes) -> None:
        kind, body = message[0], message[1:]
        if kind == CHOKE:  # throws our requests away
            self._wanted = sorted(self._missing)
        elif kind == UNCHOKE:
            for _ in range(PIPELINE):
                self._ask()
        elif kind == REQUEST:
            piece, begin, size = struct.unpack(">III", body)
            assert piece >= self._theirs, "asked for a piece that we said we do not have"
            self._answers.put_nowait(body[:8] + self._data[piece * PIECE + begin :][:size])
            self._unserved -= set(range(piece * PIECE + begin, piece * PIECE + begin + size, BLOCK))
        elif kind == PIECE_DATA:
            piece, begin = struct.unpack_from(">II", body)
            at = piece * PIECE + begin
            self._got[at : at + len(body) - 8] = body[8:]
            self._missing.discard(at)
            self._ask()

    def _ask(self) -> None:
        if self._wanted:
            piece, begin = divmod(self._wanted.pop(0), PIECE)
            size = min(BLOCK, len(self._got) - piece * PIECE - begin)
            self._send(REQUEST, struct.pack(">III", piece, begin, size))

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
