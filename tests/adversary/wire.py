"""What strangers say, byte for byte: introductions (docs/protocol.md section 7), and packets with forged sources."""

from __future__ import annotations

import base64
import hmac
import os
import re
import socket
import struct
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import keynet

INVITE, ANSWER, GO, DECLINED = range(1, 5)
LABEL = b"keynet-introduction-1"
KEYS = 128
SIGNATURE = 64


class Introduction:
    """The dialler's side of one exchange."""

    def __init__(self, identity: keynet.Identity, wanted: bytes) -> None:
        self.exchange = os.urandom(16)
        self._own, self._wanted = identity.node_id.public_key, wanted
        self._secret = X25519PrivateKey.generate()
        self._public = self._secret.public_key().public_bytes_raw()
        signer = load_pem_private_key(identity.to_pem().encode(), None)
        assert isinstance(signer, Ed25519PrivateKey)
        said = LABEL + bytes([INVITE]) + self.exchange + self._own + wanted + self._public
        self.invite = bytes([INVITE]) + chain_of(identity) + self._public + signer.sign(said)

    def go(self, answer: bytes, whereabouts: bytes) -> bytes:
        """The third step, for an Answer that came."""
        at = 2
        for _ in range(answer[1]):
            at += 2 + int.from_bytes(answer[at : at + 2], "big")
        other = answer[at : at + 32]
        shared = self._secret.exchange(X25519PublicKey.from_public_bytes(other))
        info = LABEL + b"\0" + self.exchange + self._own + self._wanted + self._public + other
        keys = _hkdf(shared, info)
        sealed = AESGCM(keys[:32]).encrypt(bytes(12), whereabouts, bytes([GO]) + self.exchange)
        return bytes([GO]) + sealed


def chain_of(identity: keynet.Identity) -> bytes:
    """The certificates of an identity, as an Invite has them."""
    blocks = re.findall("-----BEGIN CERTIFICATE-----(.*?)-----END", identity.to_pem(), re.DOTALL)
    certificates = [base64.b64decode(block) for block in blocks]
    return bytes([len(certificates)]) + b"".join(struct.pack(">H", len(one)) + one for one in certificates)


def whereabouts(candidates: Sequence[tuple[str, int]], *, symmetric: bool) -> bytes:
    """Where a node says it is; `symmetric` with uniform ports makes the other side search."""
    mapping, filtering, ports = (3, 3, 4) if symmetric else (1, 1, 1)
    profile = bytes([mapping, filtering, 3, ports, 0, 0, 0, 0, 0])
    named = b"".join(
        bytes([kind % 2, 4]) + struct.pack(">H", port) + socket.inet_aton(host)
        for kind, (host, port) in enumerate(candidates)
    )
    return bytes([1, 1, 0, 0, len(profile)]) + profile + bytes([len(candidates)]) + named


def _hkdf(secret: bytes, info: bytes) -> bytes:
    key = hmac.digest(LABEL, secret, "sha256")
    out = block = b""
    while len(out) < KEYS:
        block = hmac.digest(key, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out


class Forger:
    """A raw socket: UDP from whatever address is claimed. Wants root."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._socket.setblocking(False)

    def send(self, source: tuple[str, int], to: tuple[str, int], payload: bytes) -> bool:
        """False: the system took it not."""
        length = 8 + len(payload)
        # without a checksum, as UDP over IPv4 may be
        udp = struct.pack(">HHHH", source[1], to[1], length, 0)
        head = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 64, 17, 0, socket.inet_aton(source[0]), socket.inet_aton(to[0])
        )
        try:
            self._socket.sendto(head + udp + payload, (to[0], 0))
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()
