"""`keynet relay` in a host of the laboratory."""

from __future__ import annotations

import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence

from driver import RELAY, SECRET, Failed, Program, at
from lab import Host
from meeting import DOCUMENTATION

from keynet.relay import credentials


class OwnRelay:
    """A relay with the shared secret of the laboratory, over UDP and TCP.

    `external`: what the internet calls the host, where a box in front of it translates 1:1.
    """

    def __init__(self, host: Host, *, external: str = "", more: Sequence[str] = ()) -> None:
        self.host = host
        self._directory = tempfile.TemporaryDirectory()
        command = ["relay", "--json", *(("--external", external) if external else ()), *more]
        command += ["--identity", f"{self._directory.name}/relay.pem"]
        command += [word for network in DOCUMENTATION for word in ("--allow-peer", network)]
        self._command = command
        self.start()
        place = at(external or str(host.address), RELAY)
        self.uris = [f"turn:{place}", f"turn:{place}?transport=tcp"]

    def start(self) -> None:
        """Runs it, with the same name and place as before."""
        self._program = Program(self.host, sys.executable, "-m", "keynet", *self._command, KEYNET_RELAY_SECRET=SECRET)
        ready = self._program.read()
        if ready.get("event") != "ready":
            raise Failed(f"the relay: {ready}")

    def static(self, host: Host) -> list[str]:
        """As a node is told of it by its user, with credentials for that node alone."""
        user, password = credentials(SECRET, host.name, time.time() + 3600)
        who = ":".join(urllib.parse.quote(part, safe="") for part in (user, password))
        return [uri.replace(":", f":{who}@", 1) for uri in self.uris]

    def kill(self) -> None:
        """Ends it at once, without a word to anybody."""
        self._program.kill()

    def end(self) -> None:
        """Ends it in good order."""
        self._program.process.terminate()
        self._program.process.wait()
