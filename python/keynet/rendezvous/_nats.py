"""The client for NATS, with one promise more: what is to go over TLS never goes in clear."""

from __future__ import annotations

import urllib.parse
from typing import Any

from nats import errors
from nats.aio.client import Client

__all__ = ["client_for"]


def client_for(url: str) -> Client:
    """A client that was not connected yet; by "tls://" one that says nothing to a server without TLS."""
    return _OverTls() if urllib.parse.urlsplit(url).scheme == "tls" else Client()


class _OverTls(Client):
    """nats-py itself goes on in clear, password and all, where the server (or who sits before it) does not ask for TLS.

    Both methods are internal to nats-py; `test_group.py` notices if they are called no more.
    """

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # a server that offers TLS without asking for it: the client looks at this alone
        if info.get("tls_available"):
            info["tls_required"] = True
        if initial_connection:
            _check(info)
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        # just before user and password are sent
        _check(self._server_info)
        command: bytes = super()._connect_command()
        return command


def _check(info: dict[str, Any]) -> None:
    if not info.get("tls_required"):
        raise errors.Error("the server offers no TLS, and the URL is tls://: nothing is sent to it in clear")
