"""A node's key and certificates."""

from __future__ import annotations

import datetime
import os
import pathlib

from . import _keynet
from ._node import NodeId

__all__ = ["Identity"]


class Identity:
    """A node's Ed25519 key and its certificate chain. Immutable; whoever has it *is* the node.

    Make one with `generate`, `load`, `load_or_create` or `from_pem`. File operations are short and block; every failure
    is an `IdentityError` (or its `IdentityExposed`) that names the file and how to mend it.
    """

    __slots__ = ("_core", "_file")

    _core: _keynet.Identity
    _file: pathlib.Path | None

    def __init__(self) -> None:
        raise TypeError("use Identity.generate(), .load(path), .load_or_create(path) or .from_pem(text)")

    @classmethod
    def _wrap(cls, core: _keynet.Identity, file: str | None = None) -> Identity:
        self = object.__new__(cls)
        self._core = core
        # where it is kept: one process at a time runs nodes with it
        self._file = None if file is None else pathlib.Path(file)
        return self

    @classmethod
    def generate(cls, *, now: datetime.datetime | None = None) -> Identity:
        """A new key with a self-signed certificate.

        `now` is the moment its dates count from, an aware datetime; the current time unless given.
        """
        return cls._wrap(_keynet.Identity.generate(_timestamp(now)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Reads a PEM file; symbolic links are followed.

        It must belong to this user, and nobody else may read it, or to root, whose group may read it; and others must
        not be able to put another in its place. Otherwise it is refused with `IdentityExposed`.
        """
        file = os.fsdecode(path)
        return cls._wrap(_keynet.Identity.load(file), file)

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """Reads a PEM file, or makes it with mode 0600 if there is none.

        Two processes that do this at the same time end with the same identity.
        """
        file = os.fsdecode(path)
        return cls._wrap(_keynet.Identity.load_or_create(file), file)

    @classmethod
    def from_pem(cls, text: str) -> Identity:
        """Reads the text of a PEM file, as `to_pem` makes it."""
        return cls._wrap(_keynet.Identity.from_pem(text))

    def to_pem(self) -> str:
        """The private key and the chain as PEM. Treat it as a password."""
        return self._core.to_pem()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the PEM file with mode 0600, whole or not at all."""
        self._core.save(os.fsdecode(path))

    def rotate(self, *, now: datetime.datetime | None = None) -> Identity:
        """A new identity with a new key that still answers to the old names: the old key signs the new certificate.

        The old identity stays usable: anyone who holds its key can still be the old node.
        """
        return self._wrap(self._core.rotate(_timestamp(now)))

    def renew(self, *, now: datetime.datetime | None = None) -> Identity:
        """The same key with new dates."""
        return self._wrap(self._core.renew(_timestamp(now)))

    @property
    def node_id(self) -> NodeId:
        """The name of this node: its (newest) key."""
        return NodeId(self._core.node_id())

    @property
    def node_ids(self) -> tuple[NodeId, ...]:
        """Every name it answers to, newest first: `node_id`, then the keys that rotations left behind."""
        return tuple(NodeId(text) for text in self._core.node_ids())

    @property
    def not_after(self) -> datetime.datetime:
        """When the certificate expires (UTC); `renew` before that."""
        return datetime.datetime.fromtimestamp(self._core.not_after(), datetime.timezone.utc)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return self.node_ids == other.node_ids and self.not_after == other.not_after

    def __hash__(self) -> int:
        return hash(self.node_id)

    def __repr__(self) -> str:
        return f"<Identity {self.node_id}, valid to {self.not_after:%Y-%m-%d}>"


def _timestamp(now: datetime.datetime | None) -> float | None:
    if now is not None and now.tzinfo is None:
        raise ValueError("now= must be an aware datetime, e.g. datetime.now(timezone.utc)")
    return None if now is None else now.timestamp()
