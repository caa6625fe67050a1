"""Relays of the laboratory: coturn as Debian ships it, or keynet's own, in a public host."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Literal

from driver import SECRET, Failed, at
from lab import Host

from keynet import NodeId
from keynet.rendezvous._relays import credentials

PORT, TLS_PORT = 3478, 443
# until the port is open; coturn reads databases first
STARTING = 20.0

Kind = Literal["coturn", "keynet"]


def why_no_coturn() -> str:
    """Why coturn cannot be run here; nothing, if it can."""
    return "" if shutil.which("turnserver") else "turnserver is not installed (Debian: coturn)"


def openssl(*arguments: str) -> bytes:
    """Runs it; gives its output."""
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


class Coturn:
    """A TURN server with the shared secret of the laboratory, over UDP and TCP."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._directory = tempfile.TemporaryDirectory()
        self._certify()
        self.start()

    @property
    def uris(self) -> list[str]:
        """As a rendezvous names it."""
        return self._ways(str(self.host.address))

    @property
    def uris6(self) -> list[str]:
        """The same over IPv6."""
        return self._ways(str(self.host.address6))

    def _ways(self, address: str) -> list[str]:
        plain = at(address, PORT)
        return [f"turn:{plain}", f"turn:{plain}?transport=tcp", f"turns:{at(address, TLS_PORT)}?key={self.key}"]

    def _certify(self) -> None:
        """Makes a certificate, and the name of its key as nodes have them."""
        key, certificate = f"{self._directory.name}/key.pem", f"{self._directory.name}/certificate.pem"
        openssl(
            "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=relay", "-keyout", key, "-out", certificate
        )
        public = openssl("pkey", "-in", key, "-pubout", "-outform", "DER")
        # RFC 8410: the key is the last 32 bytes
        self.key = NodeId.from_public_key(public[-32:])

    def static(self, host: Host) -> list[str]:
        """As a node is told of it by its user, with credentials for that node alone."""
        user, password = credentials(SECRET, host.name, time.time() + 3600)
        who = ":".join(urllib.parse.quote(part, safe="") for part in (user, password))
        return [uri.replace(":", f":{who}@", 1) for uri in self.uris]

    def start(self) -> None:
        """Runs it, and waits until it listens."""
        addresses = [str(self.host.address), str(self.host.address6)]
        listening = "".join(f"listening-ip={one}\nrelay-ip={one}\n" for one in addresses)
        folder = self._directory.name
        config = Path(folder, "turnserver.conf")
        config.write_text(
            f"{listening}listening-port={PORT}\nuse-auth-secret\nstatic-auth-secret={SECRET}\nrealm=laboratory\n"
            f"no-cli\nno-dtls\ntls-listening-port={TLS_PORT}\ncert={folder}/certificate.pem\npkey={folder}/key.pem\n"
            f"log-file=stdout\nsimple-log\nuserdb={folder}/db\n"
            f"pidfile={folder}/pid\nrelay-threads=1\n"
        )
        with Path(self._directory.name, "log").open("w") as log:
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
