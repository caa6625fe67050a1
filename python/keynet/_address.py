"""Addresses as people write them, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable

from ._node import NodeId
from ._reasons import Reason, Stage
from .errors import InvalidArgument

__all__ = ["rendezvous_address", "rendezvous_addresses", "server_addresses"]


def rendezvous_address(text: str) -> tuple[NodeId, str]:
    """The two parts of "<node id>@host:port"."""
    node, at, address = text.rpartition("@") if isinstance(text, str) else ("", "", "")
    if not at:
        form = '"<node id>@host:port", as `keynet rendezvous` prints it'
        raise _invalid(f"rendezvous: {text!r} is not of the form {form}")
    try:
        return NodeId(node), _host_and_port("rendezvous", address)
    except InvalidArgument as error:
        if error.detail.startswith("rendezvous"):
            raise
        raise _invalid(f"rendezvous: {node!r} in {text!r}: {error.detail}") from None


def rendezvous_addresses(texts: Iterable[str]) -> list[str]:
    """Several, each once and written alike."""
    if isinstance(texts, str):
        raise _invalid('rendezvous is a list: ["<node id>@host:port"]')
    return list(dict.fromkeys("@".join(rendezvous_address(text)) for text in texts))


def server_addresses(name: str, texts: Iterable[str]) -> list[str]:
    """Several times "host:port"; `name` is the argument's, for the error."""
    if isinstance(texts, str):
        raise _invalid(f'{name} is a list: ["host:port"]')
    return list(dict.fromkeys(_host_and_port(name, text) for text in texts))


def _host_and_port(name: str, text: str) -> str:
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65536) or bare_v6:
        raise _invalid(f'{name}: {text!r} is not of the form "host:port" or "[v6]:port" with a port from 1 to 65535')
    return text


def _invalid(detail: str) -> InvalidArgument:
    return InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)
