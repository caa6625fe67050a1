"""`keynet relay` in a host of the laboratory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from driver import RELAY, SECRET, Failed, Program, at
from lab import Host
from meeting import DOCUMENTATION


class OwnRelay:
    """A relay with the shared secret of the laboratory, over UDP and TCP.

    `external`: what the internet calls the host, where a box in front of it translates 1:1.
    """

    def __init__(self, host: Host, *, external: str = "", more: Sequence[str] = ()) -> None:
        self.host = host
        command = ["relay", "--json", *(("--external", external) if external else ()), *more]
        command += [word for network in DOCUMENTATION for word in ("--allow-peer", network)]
        self._program = Program(host, sys.executable, "-m", "keynet", *command, KEYNET_RELAY_SECRET=SECRET)
        ready = self._program.read()
        if ready.get("event") != "ready":
            raise Failed(f"the relay: {ready}")
        place = at(external or str(host.address), RELAY)
        self.uris = [f"turn:{place}", f"turn:{place}?transport=tcp"]

    def kill(self) -> None:
        """Ends it at once, without a word to anybody."""
        self._program.kill()
