"""Relays of the laboratory: coturn as Debian ships it, or keynet's own, in a public host."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

from driver import SECRET, Failed, at
from lab import Host

PORT, TLS_PORT = 3478, 443
# until the port is open; coturn reads databases first
STARTING = 20.0

Kind = Literal["coturn", "keynet"]


def why_no_coturn() -> str:
    """Why coturn cannot be run here; nothing, if it can."""
    return "" if shutil.which("turnserver") else "turnserver is not installed (Debian: coturn)"


class Coturn:
    """A TURN server with the shared secret of the laboratory, over UDP and TCP."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._directory = tempfile.TemporaryDirectory()
        self.start()

    @property
    def uris(self) -> list[str]:
        """As a rendezvous names it."""
        address = str(self.host.address)
        return [f"turn:{at(address, PORT)}", f"turn:{at(address, PORT)}?transport=tcp"]

    def start(self) -> None:
        """Runs it, and waits until it listens."""
        addresses = [str(self.host.address), str(self.host.address6)]
        listening = "".join(f"listening-ip={one}\nrelay-ip={one}\n" for one in addresses)
        config = Path(self._directory.name, "turnserver.conf")
        config.write_text(
            f"{listening}listening-port={PORT}\nuse-auth-secret\nstatic-auth-secret={SECRET}\nrealm=laboratory\n"
            f"no-cli\nno-tls\nno-dtls\nlog-file=stdout\nsimple-log\nuserdb={self._directory.name}/db\n"
            f"pidfile={self._directory.name}/pid\nrelay-threads=1\n"
        )
        log = Path(self._directory.name, "log").open("w")
        self.process = self.host.popen(["turnserver", "-c", str(config)], stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + STARTING
        while f":{PORT} " not in self.host.run("ss", "-Hltn"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"coturn does not listen: {Path(self._directory.name, 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it at once, without a word to anybody."""
        self.process.kill()
        self.process.wait()
