"""Nodes are keys (docs/protocol.md section 4): identity files, and the judgement of a peer's chain.

Needs the `cryptography` package: the standard library neither makes nor inspects certificates.
"""

from __future__ import annotations

import base64
import datetime
import os
import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

MAX_CHAIN = 16
_HEX_TO_32HEX = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHIJKLMNOPQRSTUV")
_32HEX_TO_HEX = bytes.maketrans(b"0123456789ABCDEFGHIJKLMNOPQRSTUV", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")


class Rejected(Exception):
    """The peer's certificates break a rule; `reason` is a name of rust/src/error.rs."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def node_text(key: bytes) -> str:
    """`v` and 52 characters of base32hex (base64.b32hexencode does not pad-strip, so by way of base32)."""
    return "v" + base64.b32encode(key).rstrip(b"=").translate(_HEX_TO_32HEX).decode().lower()


def node_key(text: str) -> bytes:
    """The public key that a node's text is. ValueError if it is no such text."""
    if not re.fullmatch("[vV][0-9a-vA-V]{52}", text):
        raise ValueError(f"{text!r} is no node id: 'v' and 52 characters of 0-9 and a-v")
    key = base64.b32decode(text[1:].upper().encode().translate(_32HEX_TO_HEX) + b"====")
    if node_text(key) != text.lower():
        raise ValueError(f"{text!r} is no node id: it does not come from 32 bytes")
    return key


def key_of(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise Rejected("certificate_invalid", "not an Ed25519 key")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def create(path: Path, rotated_from: Path | None = None) -> str:
    """Makes an identity file (mode 0600): key, then certificates, leaf first. Returns the node's text."""
    key = Ed25519PrivateKey.generate()
    signer, chain = key, b""
    if rotated_from:
        signer = _private_key(rotated_from.read_bytes())
        chain = b"".join(
            c.public_bytes(Encoding.PEM) for c in x509.load_pem_x509_certificates(rotated_from.read_bytes())
        )
    node, by = (node_text(k.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)) for k in (key, signer))
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = issue(node, by, key.public_key(), now - datetime.timedelta(days=1), now + datetime.timedelta(days=365))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem += builder.sign(signer, None).public_bytes(Encoding.PEM) + chain
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
    return node


def issue(
    subject: str, issuer: str, key: Ed25519PublicKey, start: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, issuer)]
    builder = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)


def _private_key(pem: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")
    return key


def names_of(path: Path) -> list[str]:
    """Every node that an identity file is, newest first."""
    return [node_text(key_of(certificate)) for certificate in x509.load_pem_x509_certificates(path.read_bytes())]


def node_of(path: Path) -> str:
    return names_of(path)[0]


def judge(chain: list[bytes]) -> list[str]:
    """Every node that the peer with this chain (DER, leaf first) is, newest first. Raises Rejected."""
    if not chain:
        raise Rejected("certificate_missing", "no certificate")
    if len(chain) > MAX_CHAIN:
        raise Rejected("chain_too_long", f"{len(chain)} certificates")
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        nodes = [_named(certificate) for certificate in certificates]
    except ValueError as e:
        raise Rejected("certificate_invalid", str(e)) from e
    now, leaf = datetime.datetime.now(datetime.timezone.utc), certificates[0]
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise Rejected("certificate_expired", f"valid {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}")
    for certificate, signer in zip(certificates, certificates[1:] + certificates[-1:], strict=True):
        try:
            Ed25519PublicKey.from_public_bytes(key_of(signer)).verify(
                certificate.signature, certificate.tbs_certificate_bytes
            )
        except InvalidSignature as e:
            raise Rejected(
                "chain_broken", f"{_name(certificate.subject)} is not signed by {_name(signer.subject)}"
            ) from e
        if _name(certificate.issuer) != node_text(key_of(signer)):
            raise Rejected("chain_broken", f"the issuer of {_name(certificate.subject)} is not the key that signed it")
    return nodes


def _named(certificate: x509.Certificate) -> str:
    node = node_text(key_of(certificate))
    if _name(certificate.subject) != node:
        raise Rejected("name_mismatch", f"the key of {node} in a certificate for {_name(certificate.subject)}")
    return node


def _name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value) if len(list(name)) == 1 else ""
