"""The relay beside coturn: bytes carried for a second of CPU, memory of an allocation, answers to strangers (Linux).

    python benches/relay_compare.py [--rounds 5] [--seconds 3] [--json FILE]

The same work on the loopback of one machine, one server at a time, in turns; medians. CPU is what the kernel charges to
the server's process. Load comes from `examples/turn_load.rs`: one client and one peer, ChannelData in one direction, as
fast as one thread sends. What the server cannot carry is lost, so the number that counts is what arrived for each
second of the server's CPU, and not how fast that was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOAD = pathlib.Path(os.environ.get("KEYNET_TURN_LOAD") or ROOT / "target/release/examples/turn_load")
HOST, USER, PASSWORD = "127.0.0.1", "load", "password"
TICKS = os.sysconf("SC_CLK_TCK")
HELD = 1_000
CASES = {
    "up, batches": ("up", 1_200, 32),
    "down, batches": ("down", 1_200, 32),
    "up, single": ("up", 1_200, 1),
    "down, single": ("down", 1_200, 1),
}
"""Direction, bytes of a datagram, datagrams in one system call of the load: as fast senders do, and as slow ones."""


class Server:
    """A running server: where it listens, and what it costs."""

    def __init__(self, process: subprocess.Popen[Any], port: int) -> None:
        self.process, self.port = process, port

    def cpu(self) -> float:
        """Seconds so far, all threads."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> int:
        """Bytes resident."""
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def embedded() -> Iterator[Server]:
    huge = str(10**12)
    code = (
        "import asyncio, keynet.relay as r\n"
        "async def main():\n"
        f"  limits = dict(max_allocations=4096, max_allocations_per_user=4096, max_allocations_per_network=4096,\n"
        f"    answers_per_second_per_network=100000, answers_per_second=100000,\n"
        f"    bytes_per_second={huge}, bytes_per_second_per_allocation={huge})\n"
        f"  users, peers = {{'{USER}': '{PASSWORD}'}}, ['127.0.0.0/8']\n"
        f"  async with r.RelayServer(listen='{HOST}:0', users=users, allowed_peers=peers, limits=limits) as relay:\n"
        "    print(relay.addresses[0].rpartition(':')[2], flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with _ended(process):
        assert process.stdout is not None
        yield Server(process, int(process.stdout.readline()))


@contextlib.contextmanager
def coturn() -> Iterator[Server]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = ["turnserver", "-n", "--no-cli", "--no-tls", "--no-dtls", "--lt-cred-mech", "--allow-loopback-peers"]
    command += ["--listening-ip", HOST, "--relay-ip", HOST, "--listening-port", str(port), "--realm", "keynet"]
    command += ["--user", f"{USER}:{PASSWORD}", "--log-file", "/dev/null", "--simple-log", "--pidfile", "/dev/null"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with _ended(process):
        _wait_for_answer(port)
        yield Server(process, port)


SERVERS = {"keynet": embedded, "coturn": coturn}


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_answer(port: int) -> None:
    question = bytes.fromhex("000100002112a442") + bytes(12)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect((HOST, port))
        asker.settimeout(0.2)
        for _ in range(100):
            with contextlib.suppress(OSError):
                asker.send(question)
                asker.recv(2_048)
                return
            time.sleep(0.1)
    raise SystemExit("coturn does not answer")


def load(server: Server, *words: object) -> dict[str, Any]:
    """One run of the load generator."""
    command = [str(LOAD), f"{HOST}:{server.port}", USER, PASSWORD, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return dict(json.loads(done.stdout))


def carried(server: Server, case: str, seconds: float) -> dict[str, float]:
    direction, size, batch = CASES[case]
    before = server.cpu()
    run = load(server, direction, seconds, size, batch)
    cpu = server.cpu() - before
    gigabytes = run["received"] / 1e9
    return {"cpu_seconds_per_gb": cpu / gigabytes, "gbit_per_second": 8 * gigabytes / run["seconds"]}


def memory(name: str) -> float:
    """Bytes for each of `HELD` allocations."""
    with SERVERS[name]() as server:
        before = server.memory()
        command = [str(LOAD), f"{HOST}:{server.port}", USER, PASSWORD, "hold", str(HELD)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        if json.loads(holder.stdout.readline() or "{}").get("held") != HELD:
            raise SystemExit(f"{name} does not hold {HELD} allocations")
        bytes_each = (server.memory() - before) / HELD
        holder.communicate()
        return bytes_each


FIRST_REQUESTS = {
    "Binding, bare (20 bytes)": bytes.fromhex("000100002112a442") + bytes(12),
    "Allocate of libwebrtc (28)": bytes.fromhex("000300082112a442") + bytes(12) + bytes.fromhex("0019000411000000"),
    "Allocate of aioice (36)": bytes.fromhex("000300102112a442")
    + bytes(12)
    + bytes.fromhex("000d0004000002580019000411000000"),
}


def amplification(name: str, request: bytes) -> float:
    """Bytes of answers for each byte of a stranger's requests, which come 20 times, 50 ms apart."""
    with SERVERS[name]() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((HOST, 0))
        stranger.connect((HOST, server.port))
        stranger.settimeout(0.05)
        received = 0
        for _ in range(20):
            stranger.send(request)
            with contextlib.suppress(TimeoutError):
                received += len(stranger.recv(2_048))
        return received / (20 * len(request))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    if shutil.which("turnserver") is None:
        raise SystemExit("turnserver is missing (Debian: coturn)")
    if not LOAD.exists():
        raise SystemExit(f"{LOAD} is missing: cargo build --release --example turn_load")
    from keynet import _keynet

    print(f"core: {_keynet.BUILD}; load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    runs: dict[str, dict[str, list[dict[str, float]]]] = {case: {name: [] for name in SERVERS} for case in CASES}
    for _ in range(options.rounds):
        for name, start in SERVERS.items():
            with start() as server:
                for case in CASES:
                    runs[case][name].append(carried(server, case, options.seconds))
    result: dict[str, Any] = {"build": _keynet.BUILD, "cases": {}, "memory": {}, "amplification": {}}
    print(f"\n{'':28}{'CPU s/GB keynet':>16}{'coturn':>9}{'ratio':>7}{'Gbit/s keynet':>16}{'coturn':>9}")
    for case, of in runs.items():
        medians = {
            name: {key: statistics.median(run[key] for run in of[name]) for key in of[name][0]} for name in SERVERS
        }
        own, other = medians["keynet"], medians["coturn"]
        ratio = other["cpu_seconds_per_gb"] / own["cpu_seconds_per_gb"]
        print(
            f"{case:28}{own['cpu_seconds_per_gb']:16.2f}{other['cpu_seconds_per_gb']:9.2f}{ratio:7.1f}"
            f"{own['gbit_per_second']:16.2f}{other['gbit_per_second']:9.2f}"
        )
        result["cases"][case] = {**medians, "ratio": ratio}
    for name in SERVERS:
        result["memory"][name] = memory(name)
    print(f"\nbytes of memory for each of {HELD} allocations: ", {n: round(b) for n, b in result["memory"].items()})
    print("\nbytes answered for each byte of a stranger")
    for what, request in FIRST_REQUESTS.items():
        ratios = {name: round(amplification(name, request), 2) for name in SERVERS}
        result["amplification"][what] = ratios
        print(f"  {what:28}", ratios)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
