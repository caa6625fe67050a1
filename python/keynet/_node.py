"""The name of a node."""

from __future__ import annotations

from . import _keynet

__all__ = ["NodeId"]


class NodeId(str):
    """The name of a node: its Ed25519 public key, as text `v` + 52 characters of base32hex.

    A `NodeId` *is* its text, always in lower case: it can be printed, compared, sorted, hashed, used as a key or put
    into JSON as it is. Making one checks it; host names are case-insensitive, so upper case is taken too.

    Raises `ValueError` with what is wrong when the text is not a node id.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> NodeId:
        if isinstance(text, NodeId):
            return text
        return super().__new__(cls, _keynet.parse_node_id(text))

    @classmethod
    def from_public_key(cls, key: bytes) -> NodeId:
        """The id of the node with this 32-byte Ed25519 public key."""
        return cls(_keynet.node_id_from_key(key))

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the Ed25519 public key that this name is."""
        return _keynet.node_id_key(self)

    @property
    def short(self) -> str:
        """The first eight characters, for logs."""
        return self[:8]

    def __repr__(self) -> str:
        return f"NodeId({str.__repr__(self)})"
