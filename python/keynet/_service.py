"""A service that is more than an address."""

from __future__ import annotations

import dataclasses
import os

from .errors import InvalidArgument

__all__ = ["Service"]


@dataclasses.dataclass(frozen=True)
class Service:
    """A service of this node, for `services=` and `set_service`, where a text with its address is not enough.

    services={50051: "127.0.0.1:50051", 8000: keynet.Service("127.0.0.1:8000", patience=300)}

    As text it is "127.0.0.1:8000,patience=300", which every place takes that takes an address.
    """

    backend: str | os.PathLike[str]
    """ "host:port" or "unix:/path"."""
    patience: float | None = None
    """How many whole seconds of silence of a peer its connections outlive; None: what the node's `patience=` says. The
    more patient of the two nodes counts, and 0 of either."""

    def __str__(self) -> str:
        backend = os.fspath(self.backend)
        if self.patience is None:
            return backend
        if self.patience != int(self.patience):
            raise InvalidArgument(f"patience is a whole number of seconds, not {self.patience}")
        return f"{backend},patience={int(self.patience)}"


def text(service: str | os.PathLike[str] | Service) -> str:
    """As the core takes it."""
    return str(service) if isinstance(service, Service) else os.fspath(service)
