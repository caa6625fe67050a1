"""TLS 1.3 over a uTP stream with ssl.MemoryBIO, both sides authenticated by keynet's rule.

Python's `ssl` asks a client for a certificate only together with OpenSSL's own verification, which knows CAs
and no self-signed nodes, and takes no verdict from Python. So the verdict is given in time: each connection
has a context of its own, whose message callback (undocumented, there since 3.8) shows the peer's Certificate
message before OpenSSL judges it; `identity.judge` applies the rules to the whole chain, and only what it
accepted goes into this connection's own trust store:

- a self-signed leaf itself, with VERIFY_X509_PARTIAL_CHAIN;
- for a rotated key a stand-in CA certificate that holds the previous key, because nodes are no CAs and
  OpenSSL refuses them as issuers.

OpenSSL then verifies the leaf against that, and CertificateVerify proves possession of its key. A chain that
is not accepted leaves the store empty, and the handshake fails. `ssl` has no exporter either; its key log
holds the exporter secret, from which RFC 8446 section 7.5 is a few lines. The log goes to memory (memfd), or
to an unlinked file where there is none.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import os
import ssl
import struct
import tempfile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from . import identity
from .identity import Rejected
from .stream import Stream
from .stun import PingKeys

ALPN = "keynet/1"
PING_LABEL = b"EXPORTER-keynet-ping-1"
_CERTIFICATE = 11  # HandshakeType (RFC 8446 section 4)
_CHUNK = 1 << 16


class TlsStream:
    """A uTP stream under TLS, made with `connect` or `accept`.

    `nodes` is every node that the peer is, newest first.
    """

    def __init__(self, stream: Stream, identity_file: Path, server: bool) -> None:
        self.stream = stream
        self.nodes: list[str] = []
        self._verdict: Rejected | None = None
        self._key_log = _memory_file()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._context(identity_file, server).wrap_bio(self._in, self._out, server_side=server)
        self._plain = bytearray()
        self._ended = False
        self._exported = b""

    @classmethod
    async def connect(cls, stream: Stream, identity_file: Path, wanted: str) -> TlsStream:
        self = await cls._handshake(stream, identity_file, server=False)
        if wanted not in self.nodes:
            stream.reset()
            raise Rejected("identity_mismatch", f"{self.nodes[0]} answered, not {wanted}")
        return self

    @classmethod
    async def accept(cls, stream: Stream, identity_file: Path) -> TlsStream:
        return await cls._handshake(stream, identity_file, server=True)

    async def read(self, limit: int = _CHUNK) -> bytes:
        """b"" after the peer's close_notify; ConnectionResetError if the stream ends without one."""
        while not self._plain and not self._ended:
            if not self._decrypt(limit):
                await self._feed()
        data = bytes(memoryview(self._plain)[:limit])
        del self._plain[:limit]
        return data

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), _CHUNK):
            self._tls.write(data[at : at + _CHUNK])
            self.stream.write(self._out.read())
            await self.stream.drain()

    def write_eof(self) -> None:
        # unwrap() looks for the peer's close_notify at once and trips over data: take that out first
        while self._decrypt(_CHUNK):
            pass
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self.stream.write(self._out.read())
        self.stream.write_eof()

    def close(self) -> None:
        self.stream.close()

    def reset(self) -> None:
        self.stream.reset()

    def ping_keys(self, dialler: bool) -> PingKeys:
        exported = self._exported
        names = exported[32:48].hex(), exported[48:64].hex()
        return PingKeys(exported[:32], names[0 if dialler else 1], names[1 if dialler else 0])

    @classmethod
    async def _handshake(cls, stream: Stream, identity_file: Path, server: bool) -> TlsStream:
        self = cls(stream, identity_file, server)
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    stream.write(self._out.read())
                    await self._feed()
            stream.write(self._out.read())
            if self._tls.selected_alpn_protocol() != ALPN:
                raise Rejected("tls_failed", "the peer does not speak keynet/1")
            self._exported = self._export(PING_LABEL, 64)
        except ssl.SSLError as e:
            with contextlib.suppress(OSError):
                stream.write(self._out.read())  # the alert
            raise self._verdict or Rejected("tls_failed", str(e)) from e
        finally:
            self._key_log.close()
        return self

    def _context(self, identity_file: Path, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_cert_chain(identity_file)
        context.set_alpn_protocols([ALPN])
        context.keylog_filename = f"/dev/fd/{self._key_log.fileno()}"
        if server:
            context.num_tickets = 0  # no resumption: a resumed session shows no chain

        def on_message(_c: Any, direction: str, _v: Any, _t: Any, kind: Any, data: bytes) -> None:
            if direction == "read" and int(kind or 0) == _CERTIFICATE:
                self._judge(context, _certificates(data))

        context._msg_callback = on_message  # type: ignore[attr-defined]
        return context

    def _judge(self, context: ssl.SSLContext, chain: list[bytes]) -> None:
        try:
            self.nodes = identity.judge(chain)
            context.load_verify_locations(cadata=_trust_anchor(chain))
        except Rejected as e:
            self._verdict = e

    def _decrypt(self, limit: int) -> bool:
        try:
            data = self._tls.read(limit)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as e:
            raise ConnectionResetError(f"TLS failed: {e}") from e
        self._plain += data
        self._ended = not data
        return bool(data)

    async def _feed(self) -> None:
        if self._ended:
            return
        data = await self.stream.read(_CHUNK)
        if not data and not self._ended:
            raise ConnectionResetError("the stream ended without close_notify")
        self._in.write(data)

    def _export(self, label: bytes, length: int) -> bytes:
        """RFC 8446 section 7.5, with an empty context; up to 255 hashes' worth."""
        with open(f"/dev/fd/{self._key_log.fileno()}", "rb") as log:
            log.seek(0)
            secrets = [line.split()[2] for line in log if line.startswith(b"EXPORTER_SECRET ")]
        cipher = self._tls.cipher()
        digest = "sha384" if cipher and cipher[0].endswith("SHA384") else "sha256"
        empty = hashlib.new(digest).digest()
        secret = _expand_label(digest, bytes.fromhex(secrets[-1].decode()), label, empty, len(empty))
        return _expand_label(digest, secret, b"exporter", empty, length)


def _expand_label(digest: str, secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1)."""
    label = b"tls13 " + label
    info = struct.pack(">HB", length, len(label)) + label + bytes([len(context)]) + context
    block = out = b""
    for i in range(1, 256):
        block = hmac.digest(secret, block + info + bytes([i]), digest)
        out += block
        if len(out) >= length:
            break
    return out[:length]


def _certificates(message: bytes) -> list[bytes]:
    """The chain in a Certificate message, header included (RFC 8446 section 4.4.2); lengths unchecked.."""
    at = 5 + (message[4] if len(message) > 4 else 0) + 3
    chain = []
    while at + 3 <= len(message):
        size = int.from_bytes(message[at : at + 3], "big")
        chain.append(message[at + 3 : at + 3 + size])
        at += 3 + size
        at += 2 + int.from_bytes(message[at : at + 2], "big")
    return chain


def _trust_anchor(chain: list[bytes]) -> bytes:
    leaf = x509.load_der_x509_certificate(chain[0])
    if leaf.subject == leaf.issuer:
        return chain[0]
    signer = x509.load_der_x509_certificate(chain[1])
    key, now = signer.public_key(), datetime.datetime.now(datetime.timezone.utc)
    assert isinstance(key, Ed25519PublicKey)
    day = datetime.timedelta(days=1)
    subject = str(next(iter(signer.subject)).value)
    builder = identity.issue(subject, "keynet stand-in", key, now - day, now + day)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER)


def _memory_file() -> Any:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("key log"), "rb")
    return tempfile.TemporaryFile()
