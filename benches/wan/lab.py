"""Two network namespaces with an emulated link between them, and transfers over it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from emulator import EMULATOR, build

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BRIDGE = ROOT / "target" / "release" / "examples" / "utp_bridge"
A, B = "10.99.0.1", "10.99.0.2"


class Impossible(Exception):
    """This machine cannot have the emulated link; the text says why."""


@dataclass(frozen=True)
class Wan:
    """What lies between the two namespaces."""

    mbit: float
    rtt_ms: float
    bdps: float = 1.0
    loss: float = 0.0

    @property
    def queue(self) -> int:
        return max(int(self.mbit * self.rtt_ms * 125 * self.bdps), 2 * 1500)

    def __str__(self) -> str:
        loss = f", {self.loss:.3g} % loss" if self.loss else ""
        return f"{self.mbit:g} Mbit/s, {self.rtt_ms:g} ms, {self.bdps:g} BDP{loss}"


def prepare() -> None:
    """Builds the emulator; says what is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Impossible("the emulated link needs Linux and root (network namespaces, TUN devices)")
    for program, package in (("ip", "iproute2"), ("cc", "gcc")):
        if shutil.which(program) is None:
            raise Impossible(f"`{program}` is missing: install {package}")
    if not Path("/dev/net/tun").exists():
        raise Impossible("/dev/net/tun is missing: the kernel has no TUN driver, or the container does not pass it on")
    if not BRIDGE.exists():
        raise Impossible(f"{BRIDGE.relative_to(ROOT)} is missing: cargo build --release --examples")
    build()


class Lab:
    """The link, while the `with` lasts. Everything that was started inside ends with it."""

    def __init__(self, path: Wan, seed: int = 1) -> None:
        self.path = path
        self._names = [f"keynet-wan-{os.getpid()}-{side}" for side in "ab"]
        self._seed = seed
        self._children: list[subprocess.Popen[str]] = []
        self._link: subprocess.Popen[str] | None = None

    def __enter__(self) -> Lab:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in [*self._children, *([self._link] if self._link else [])]:
            child.kill()
            child.communicate()
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _start(self) -> None:
        path = self.path
        for name in self._names:
            result = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if result.returncode:
                raise Impossible(f"no network namespace can be made: {result.stderr.strip()}")
        settings = [f"rate={path.mbit}", f"delay={path.rtt_ms / 2}", f"queue={path.queue}", f"loss={path.loss / 100}"]
        self._link = subprocess.Popen(
            [str(EMULATOR), *self._names, *settings, f"seed={self._seed}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._link.stdout
        if self._link.stdout.readline() != "ready\n":
            raise Impossible("the emulator did not start")
        for name, address in zip(self._names, (A, B), strict=True):
            for words in (f"addr add {address}/30 dev wan", "link set wan txqlen 10000 up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
            # buffers that do not limit the kernel's TCP, and nothing remembered of earlier connections
            for key, value in {
                "tcp_rmem": "4096 131072 67108864",
                "tcp_wmem": "4096 65536 67108864",
                "tcp_no_metrics_save": "1",
            }.items():
                subprocess.run(
                    ["ip", "netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{key}"], check=True
                )

    def popen(self, side: int, *command: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            ["ip", "netns", "exec", self._names[side], *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._children.append(child)
        return child

    def traffic(self, side: int, *arguments: str) -> subprocess.Popen[str]:
        return self.popen(side, sys.executable, str(HERE / "traffic.py"), *arguments)

    def counters(self) -> dict[str, Any]:
        """What the link did since it was last asked."""
        assert self._link
        assert self._link.stdin
        assert self._link.stdout
        self._link.stdin.write("\n")
        self._link.stdin.flush()
        counters: dict[str, Any] = json.loads(self._link.stdout.readline())
        # what the kernel dropped because the emulator was late: nothing of that may happen
        for side, way in enumerate(("forth", "back")):
            shown = subprocess.run(
                ["ip", "-n", self._names[side], "-j", "-s", "link", "show", "wan"],
                capture_output=True,
                text=True,
                check=True,
            )
            counters[way]["device_drops"] = json.loads(shown.stdout)[0]["stats64"]["tx"]["dropped"]
        return counters


@dataclass
class Flow:
    """A bulk transfer from A to B, by the kernel's TCP (`tcp-cubic`, `tcp-bbr`) or ours (`keynet-bbr` ...)."""

    lab: Lab
    system: str
    port: int = 5001
    began: float = 0.0
    samples: list[tuple[float, int]] = field(default_factory=list)

    def start(self) -> Flow:
        transport, controller = self.system.split("-")
        self._receiver = self.lab.traffic(1, "receive", str(self.port))
        ready(self._receiver)
        if transport == "tcp":
            self._sender = self.lab.traffic(0, "send", B, str(self.port), controller)
        else:
            utp = f"{B}:{self.port + 1000}"
            there = self.lab.popen(
                1, str(BRIDGE), "listen", "--utp", utp, "--tcp", f"127.0.0.1:{self.port}", "--controller", controller
            )
            ready(there)
            here = self.lab.popen(
                0, str(BRIDGE), "connect", "--utp", utp, "--tcp", f"127.0.0.1:{self.port}", "--controller", controller
            )
            ready(here)
            self._sender = self.lab.traffic(0, "send", "127.0.0.1", str(self.port), "cubic")
        assert self._sender.stdout
        self.began = float(self._sender.stdout.readline())
        return self

    def stop(self) -> Flow:
        self._receiver.terminate()
        assert self._receiver.stdout
        self.samples = json.loads(self._receiver.stdout.readline() or "[]")
        self._sender.kill()
        return self

    def goodput(self, start: float, end: float) -> float:
        """Mbit/s of payload between two moments."""
        return max(0.0, (self._bytes(end) - self._bytes(start)) * 8e-6 / (end - start))

    def _bytes(self, at: float) -> float:
        before = (self.began, 0)
        for sample in self.samples:
            if sample[0] > at:
                share = (at - before[0]) / max(sample[0] - before[0], 1e-9)
                return before[1] + share * (sample[1] - before[1])
            before = sample
        return before[1]


def ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout
    line = child.stdout.readline()
    if not line.startswith("ready"):
        raise RuntimeError(f"{child.args} did not start: {line!r}")
