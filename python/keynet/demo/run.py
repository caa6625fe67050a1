"""Runs the demo's four processes and tells what they did."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from .._identity import Identity
from .._keynet import BUILD
from ..cli._output import Output, milliseconds
from ..errors import InternalError

_PATIENCE = 60.0
_OF_THE_USERS_NODES = ("KEYNET_RENDEZVOUS", "KEYNET_RELAYS", "KEYNET_CREDENTIALS")
"""Variables that a user may have set for the own nodes: two nodes of one machine find each other without."""


class Demo:
    """gRPC client -> keynet node A -> uTP and TLS over UDP -> keynet node B -> gRPC server."""

    def __init__(self, out: Output, *, calls: int, mebibytes: int, ipv6: bool) -> None:
        self._out, self._calls, self._mebibytes = out, calls, mebibytes
        self._host = "[::1]" if ipv6 else "127.0.0.1"

    def run(self) -> int:
        with tempfile.TemporaryDirectory(prefix="keynet-demo-") as folder, contextlib.ExitStack() as stack:
            file_a, file_b = pathlib.Path(folder, "a.pem"), pathlib.Path(folder, "b.pem")
            a, b = Identity.load_or_create(file_a), Identity.load_or_create(file_b)
            self._say("A plain gRPC server; it knows nothing of keynet:")
            server = stack.enter_context(Process("keynet.demo.server", "--address", f"{self._host}:0"))
            server_address = server.expect("ready")["address"]
            self._say(f"  process {server.pid}, listens on {server_address}\n")

            self._say("Two keynet nodes, each in a process of its own:")
            common = ["up", "--json", "--listen", f"{self._host}:0", "--forward", f"{self._host}:0"]
            node_b = stack.enter_context(
                Process(
                    "keynet",
                    *common,
                    "--identity",
                    str(file_b),
                    "--service",
                    f"50051={server_address}",
                    "--allow",
                    a.node_id,
                )
            )
            ready_b = node_b.expect("ready")
            self._say(f"  B  process {node_b.pid}, UDP {ready_b['proxy_address']}, offers the server to node A only")
            self._say(f"     {b.node_id}")
            node_a = stack.enter_context(
                Process(
                    "keynet",
                    *common,
                    "--identity",
                    str(file_a),
                    "--peer",
                    f"{b.node_id}={ready_b['proxy_address']}",
                )
            )
            ready_a = node_a.expect("ready")
            self._say(f"  A  process {node_a.pid}, HTTP proxy on {ready_a['forward_address']}")
            self._say(f"     {a.node_id}\n")

            target = f"{b.node_id}.keynet:50051"
            self._say("A plain gRPC client; it is told an HTTP proxy and a name:")
            through = self._client("--target", target, "--proxy", ready_a["forward_url"], title=True)
            opened = node_b.expect("connection_opened")["connection"]
            self._say(f"\n  Node B saw the caller prove the key of {opened['node_id']},")
            self._say(f"  from {opened['remote_address']}, and connected it to {opened['server_address']}.\n")
            self._say("The same client directly to the server, for comparison:")
            direct = self._client("--target", server_address)
            self._compare(through, direct)
            for node in (node_a, node_b):
                node.stop()
        self._out.result(
            {"event": "done", "build": BUILD},
            "\nAll four kinds of calls went through. The files of the two nodes are gone.",
        )
        return 0

    def _client(self, *arguments: str, title: bool = False) -> list[dict[str, Any]]:
        reports = []
        with Process(
            "keynet.demo.client", *arguments, "--calls", str(self._calls), "--mebibytes", str(self._mebibytes)
        ) as client:
            if title:
                self._say(f"  process {client.pid}, HTTP proxy as above, target <node B>.keynet:50051")
            for report in client.lines():
                reports.append(report)
                if title and "call" in report:
                    note = f" ({report['includes']} included)" if "includes" in report else ""
                    text = f"  {report['call']:13}  {report['said']!s:50}  {milliseconds(report['seconds'])}{note}"
                    self._out.result({"event": "call", **report}, text)
            client.finish()
        return reports

    def _compare(self, through: list[dict[str, Any]], direct: list[dict[str, Any]]) -> None:
        rows = []
        for one, other in zip(through, direct, strict=True):
            if one.get("measured") == "unary calls":
                rows += [(f"unary call, {name}", one[name], other[name], milliseconds) for name in ("median", "p99")]
            elif "measured" in one:
                rate = [report["bytes"] / report["seconds"] for report in (one, other)]
                rows.append((f"{one['measured']}, {self._mebibytes} MiB", *rate, _rate))
        self._say(f"  {'':22}{'keynet':>14}{'direct':>14}")
        for name, value, compared, text in rows:
            numbers = {"event": "measured", "what": name, "keynet": value, "direct": compared}
            self._out.result(numbers, f"  {name:22}{text(value):>14}{text(compared):>14}")
        if BUILD == "debug":
            self._say("  (this core was built without optimisation: the numbers mean little)")

    def _say(self, text: str) -> None:
        if not self._out.json:
            print(text, flush=True)


def _rate(value: float) -> str:
    return f"{value / 2**20:.0f} MiB/s"


class Process:
    """A child that writes one JSON object a line. Leaving the context ends it, whatever happened."""

    def __init__(self, module: str, *arguments: str) -> None:
        # gRPC's public proxy option yields to these; the demo's machine may have them set
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        for name in _OF_THE_USERS_NODES:
            environment.pop(name, None)
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # Ctrl-C is for the parent, which ends its children in order
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it writes, until it ends."""
        while (line := self._next(600.0)) is not None:
            yield json.loads(line)

    def expect(self, event: str) -> dict[str, Any]:
        """The next such event; others are passed over."""
        deadline = time.monotonic() + _PATIENCE
        while (line := self._next(deadline - time.monotonic())) is not None:
            found: dict[str, Any] = json.loads(line)
            if found.get("event") == event:
                return found
            if "error" in found:
                raise InternalError(f"{self._name} failed: {found['error']['message']}")
        raise InternalError(f"{self._name} ended before it said {event!r}; its complaints are above")

    def _next(self, seconds: float) -> str | None:
        try:
            return self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise InternalError(f"{self._name} (process {self.pid}) said nothing for too long") from None

    def finish(self) -> None:
        """Waits for its own end, which must be a good one."""
        code = self._process.wait(_PATIENCE)
        if code != 0:
            raise InternalError(f"{self._name} ended with exit code {code}; its complaints are above")

    def stop(self) -> None:
        """Asks it to end in good order."""
        self._process.terminate()
        self.finish()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
