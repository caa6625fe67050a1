"""A company's network: nothing passes its firewall, and an HTTP proxy in it is the only way out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from driver import Failed, Program
from lab import Host

PROGRAM = Path(__file__).with_name("http_proxy.py")
PORT = 3128


class HttpProxy:
    """The proxy (http_proxy.py) in the box in front of a host. `credentials`: the "user:password" that it wants."""

    def __init__(self, host: Host, *, credentials: str = "", forbids: bool = False) -> None:
        self.place = f"{host.nat.gateway}:{PORT}"
        words = [host.nat.gateway, str(PORT), *([credentials] if credentials else []), *(["--forbid"] * forbids)]
        self._program = Program(host.nat, sys.executable, str(PROGRAM), *words)
        assert self._program.read() == {"event": "ready"}

    def environment(self, credentials: str = "") -> dict[str, str]:
        """What a user of the network has in the environment."""
        who = f"{credentials}@" if credentials else ""
        # whatever else the machine of the tests has there
        return {"https_proxy": f"http://{who}{self.place}", "no_proxy": ""}

    def kill(self) -> None:
        """Ends it at once, with every connection through it."""
        self._program.kill()

    def asked(self) -> list[tuple[str, int]]:
        """Ends it. What it was asked for, and the status it answered with."""
        self._program.process.terminate()
        found = []
        with contextlib.suppress(Failed):
            while line := self._program.read():
                found.append((line["connect"], line["status"]))
        return found
