"""The laboratory itself: it leaves nothing behind, whatever ends it, and does to a path what it says."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import Lab, LabError, started_at, sweep
from lab.state import DIRECTORY
from lab.system import NAMESPACES
from test_behaviour import Answerer

HERE = Path(__file__).parent
# a laboratory with a child in it, which waits to be ended
OWNER = """
import subprocess, sys, time
from lab import Lab
lab = Lab(tag=sys.argv[1], rtt_ms=4)
lab.server("s")
host = lab.host("a", "cgnat")
with lab:
    print(host.popen(["sleep", "600"]).pid, flush=True)
    if sys.argv[2] == "raises":
        raise RuntimeError("as asked")
    time.sleep(600)
"""


def left(tag: str) -> list[str]:
    names = [path.name for path in NAMESPACES.glob(f"kn-{tag}-*")] if NAMESPACES.exists() else []
    return names + [path.name for path in DIRECTORY.glob(f"*{tag}*")]


@pytest.mark.parametrize("how", ["TERM", "INT", "KILL", "raises"])
def test_whatever_ends_it_leaves_nothing(how: str):
    # others on this machine may run this test as well
    tag = f"ends{os.getpid()}{how.lower()}"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tag, how], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    child = int(owner.stdout.readline())
    if how != "raises":
        owner.send_signal(signal.Signals[f"SIG{how}"])
    owner.wait(30)
    if how == "KILL":
        sweep()
        # or somebody else's, who has seen it first and is not done
        deadline = time.monotonic() + 10
        while left(tag) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert left(tag) == []
    assert started_at(child) is None


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_what_is_missing_is_said(ci: str, code: int, tmp_path: Path):
    """And in CI, where everything must run, that is a failure and no skip."""
    environment = {**os.environ, "PATH": str(tmp_path), "CI": ci, "KEYNET_NOT_RUN": str(tmp_path / "not-run")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(HERE / "test_behaviour.py"), "-k", "test_no_udp"],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "nft (nftables)" in done.stdout


def test_what_cannot_be_built_leaves_nothing():
    tag = f"broken{os.getpid()}"
    lab = Lab(tag=tag)
    lab.host("a", "full-cone").nat.address = "nonsense"
    with pytest.raises(LabError), lab:
        pass
    assert left(tag) == []


def test_several_stand_side_by_side():
    def one(_: int) -> bool:
        lab = Lab()
        server, host = lab.server("s"), lab.host("a", "symmetric")
        with lab:
            answerer = Answerer(server)
            return all(answerer.see(host.socket())[0] == host.seen_as for _ in range(10))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [True] * 4


@pytest.mark.parametrize("rtt_ms", [0, 8])
def test_what_is_done_to_a_path(rtt_ms: int):
    lab = Lab(rtt_ms=rtt_ms)
    server = lab.server("s")
    wifi, mobile = lab.nat("wifi", "port-restricted"), lab.nat("mobile", "symmetric")
    host = lab.host("a", behind=[wifi, mobile])
    with lab:
        answerer = Answerer(server)
        probe = host.socket()
        probe.settimeout(5)
        first = answerer.see(probe)
        assert first[0] == wifi.address
        host.use_uplink(1)
        assert answerer.see(probe)[0] == mobile.address
        host.use_uplink(0)
        assert answerer.see(probe) == first
        wifi.forget()
        again = answerer.see(probe)
        assert again[0] == wifi.address
        assert again != first
        wifi.set_address("198.51.100.200")
        assert answerer.see(probe)[0] == "198.51.100.200" == host.seen_as
        host.cut()
        probe.sendto(b"lost", answerer.sockets[0].getsockname())
        answerer.sockets[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            answerer.sockets[0].recv(64)
        answerer.sockets[0].settimeout(5)
        host.mend()
        answerer.sockets[0].sendto(b"found", answerer.see(probe))
        assert probe.recv(64) == b"found"
