"""The programs of a test, as the test sees them: nodes and rendezvous in the hosts of a laboratory."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import Host
from lab import Node as Place

NODE = Path(__file__).with_name("node.py")
# a guard against hangs: twice the longest that a node may take to fail
HANG = 60.0
# the ports of a rendezvous: its own, and two for STUN, so that a node can tell ports from addresses (RFC 5780)
RENDEZVOUS, STUN = 4433, (3480, 3479)
# of its relay, where it has one
RELAY, RELAY_TLS = 3478, 443


# what a rendezvous and the relays that it names share
SECRET = "a secret of the laboratory"


class Failed(Exception):
    """A program did not do what it was told; the text has its words."""


class Program:
    """A child process that says JSON objects, a line each."""

    def __init__(self, host: Place, *command: str, **environment: str) -> None:
        self.host = host
        env = {**os.environ, **environment}
        self.process = host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self._rest = b""

    def read(self, timeout: float = HANG) -> dict[str, Any]:
        """The next object."""
        assert self.process.stdout
        pipe, deadline = self.process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._rest:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failed(f"{self.host.name} said nothing for {timeout:.0f} s")
            if not (data := os.read(pipe, 65536)):
                raise Failed(f"{self.host.name} ended: {self.process.wait()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        """It gets no CPU any more."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It gets the CPU again."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once, without a word to anybody."""
        self.process.kill()
        self.process.wait()


class Node(Program):
    """A node program (node.py), or another one that obeys in the same way."""

    host: Host

    def __init__(self, host: Host, program: Path = NODE, **environment: str) -> None:
        super().__init__(host, sys.executable, str(program), **environment)
        self.node_id = ""
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}

    def begin(self, do: str, **fields: Any) -> int:
        """Gives a command; `answer` waits for what comes of it."""
        assert self.process.stdin
        self._asked += 1
        self.process.stdin.write(f"{json.dumps({'id': self._asked, 'do': do, **fields})}\n".encode())
        self.process.stdin.flush()
        return self._asked

    def answer(self, number: int, timeout: float = HANG) -> dict[str, Any]:
        """What came of a command. Raises `Failed` if it could not be done."""
        deadline = time.monotonic() + timeout
        while number not in self._answers:
            said = self.read(deadline - time.monotonic())
            self._answers[said["id"]] = said
        answer = self._answers.pop(number)
        if "error" in answer:
            raise Failed(f"{self.host.name}: {answer['error']}")
        return answer

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Gives a command and waits."""
        return self.answer(self.begin(do, **fields))

    def peer(self, node_id: str) -> dict[str, Any]:
        """What it says of a peer in its status."""
        peers = self.ask("status")["status"]["peers"]
        return next((peer for peer in peers if peer["node_id"] == node_id), {"paths": []})

    def start(self, **options: Any) -> None:
        """Starts a node in the program."""
        answer = self.ask("start", **options)
        self.node_id = answer["node_id"]
        self.port = int(answer["proxy_address"].rpartition(":")[2])


class Rendezvous:
    """`keynet rendezvous` on a server, with STUN on two ports of each of its addresses."""

    def __init__(
        self, server: Host, *, relays: Sequence[Sequence[str]] = (), more: Sequence[str] = (), max_nodes: int = 100
    ) -> None:
        self.host = server
        self._directory = tempfile.TemporaryDirectory()
        command = [
            "rendezvous",
            "--json",
            "--max-nodes",
            str(max_nodes),
            "--identity",
            f"{self._directory.name}/node.pem",
        ]
        command += ["--listen", f"[::]:{RENDEZVOUS}", *more]
        for address in [server.address] if server.uplinks else server.public:
            for port in STUN:
                command += ["--stun", at(address, port)]
        for uris in relays:
            command += ["--turn", ",".join(uris)]
        self._command = [sys.executable, "-m", "keynet", *command]
        self.start()

    def start(self) -> None:
        """Runs it, with the same name and place as before."""
        self.program = Program(self.host, *self._command, KEYNET_TURN_SECRET=SECRET)
        ready = self.program.read()
        if ready.get("event") != "ready":
            raise Failed(f"the rendezvous: {ready}")
        self.node_id = ready["node_id"]

    def kill(self) -> None:
        """Ends it at once, without a word to anybody."""
        self.program.kill()

    def end(self) -> None:
        """Ends it in good order: its nodes are told."""
        self.program.process.terminate()
        self.program.process.wait()

    def place(self, *, ipv6: bool = False) -> str:
        """Where it is, as `rendezvous=` wants it."""
        address = self.host.address6 if ipv6 else self.host.seen_as
        return f"{self.node_id}@{at(str(address), RENDEZVOUS)}"


def at(host: str, port: int) -> str:
    """host:port, with brackets for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
