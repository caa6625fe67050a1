"""The fenced blocks of the documents, and what stands for their placeholders on this machine."""

from __future__ import annotations

import dataclasses
import re
import shlex
import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benches/*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"^<!-- not run: (\S(?:(?!-->).)*) -->\n\Z", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block."""

    document: Path
    line: int
    language: str
    text: str
    not_run: str | None
    """Why it cannot run, from the comment in the line above it."""

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        marked = _NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(document, line, match[1], match[2], marked[1] if marked else None))
    return found


ALL = [block for document in DOCUMENTS for block in blocks(document)]


def of(*languages: str) -> list[Block]:
    """The blocks that run."""
    return [block for block in ALL if block.language in languages and block.not_run is None]


def commands(text: str) -> list[str]:
    """The commands of a shell block, one a string, without comments."""
    joined = text.replace("\\\n", " ")
    return [shlex.join(words) for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


@dataclasses.dataclass
class Surroundings:
    """What the placeholders of the documents are on this machine."""

    rendezvous: str
    """For `v…@host:port`."""
    node: str
    """For `v…`: a node that can be called."""
    address: str
    """Its UDP address, for the one that documents give it."""
    nats: str
    forward_url: str
    backend: str
    """The gRPC server behind the node."""
    runtime: Path
    """The runtime folder of the only node that `keynet status` finds."""

    def fill(self, text: str) -> str:
        """The text with everything that is only an example replaced."""
        text = re.sub(r"http://user:password@[\d.:]+", self.forward_url, text)
        text = re.sub(r"nats://[\w.-]+:\d+", self.nats, text)
        text = re.sub(r"v…(node \w…)?@(…|[\w.-]+):\d+", self.rendezvous, text)
        text = re.sub(r"v…", self.node, text)
        text = text.replace("198.51.100.7:4433", self.address).replace("=…", "=some-secret")
        text = text.replace("unix:/run/web.sock", "unix:web.sock")
        text = re.sub(r"[\w.-]+\.example\.org", "127.0.0.1", text)
        # each port that something listens at, or is expected at, is a free one here
        hosts = r"(?<![\w@:.\[])(?:\[::\]|\[2001:db8::7\]|0\.0\.0\.0|127\.0\.0\.1|198\.51\.100\.\d+|203\.0\.113\.\d+)"
        skip = {self.address, self.nats.rpartition("/")[2], self.rendezvous.rpartition("@")[2]}
        skip.add(self.forward_url.rpartition("@")[2])

        def free(match: re.Match[str]) -> str:
            return match[0] if match[0] in skip else f"127.0.0.1:{free_port()}"

        return re.sub(hosts + r":\d+", free, text)


def free_port() -> int:
    """A port that nobody uses, over TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
