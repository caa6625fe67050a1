"""What a node finds out about its NATs (RFC 5780) is what the laboratory has put before it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import subprocess
import sys
from typing import Any

import pytest
from driver import Program, at
from lab import KINDS, Host, Lab, seen

# RFC 5780: both ports on both addresses
PORTS = (3478, 3479)
# nobody answers at the one, and at the other this process hears what arrives
DOWN, LISTENER = 9, 5000
# a guard against hangs: three times what it takes where nothing answers
DEADLINE = 10.0
# what a host behind a box sees of the internet is half of it away
RTT_MS = 40.0
SERVER = """
import json, sys
from keynet import _keynet
server = _keynet.StunServer.bind(sys.argv[1:], None)
print(json.dumps(server.addresses()), flush=True)
sys.stdin.read()
print(json.dumps(server.stats()), flush=True)
server.close(None)
"""
DISCOVERY = """
import json, sys
from keynet import _keynet
print(json.dumps(_keynet.discover(sys.argv[2:], float(sys.argv[1]), None)))
"""
# the words of the laboratory in those of a profile
PORTS_FOUND = {"preserved": "preserved", "random": "uniform", "sequential": "sequential"}


def serve(host: Host, addresses: list[str], ports: tuple[int, ...]) -> list[str]:
    """Starts a STUN server; gives where it answers."""
    places = [at(address, port) for address in addresses for port in ports]
    server = Program(host, sys.executable, "-c", SERVER, *places)
    assert server.read() == places
    return places


def discover(host: Host, servers: list[str]) -> dict[str, Any]:
    """What a process in a host finds out."""
    child = host.popen([sys.executable, "-c", DISCOVERY, str(DEADLINE), *servers], stdout=subprocess.PIPE)
    assert child.stdout
    with contextlib.closing(child.stdout):
        found: dict[str, Any] = json.loads(child.stdout.read())
    child.wait()
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """By kind: with a server of two addresses, one of two ports, and one that is down."""
    lab = Lab(rtt_ms=RTT_MS)
    full, plain = lab.server("full"), lab.server("plain")
    hosts = {kind: lab.host(kind, kind) for kind in KINDS}
    with lab:
        places = serve(full, full.public[:2], PORTS)[:1] + serve(plain, plain.public[:1], PORTS)[:1]
        places.append(at(plain.address, DOWN))
        listener = plain.socket()
        listener.bind((plain.address, LISTENER))
        listener.settimeout(DEADLINE)
        found = {}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for kind, profile in zip(hosts, pool.map(lambda host: discover(host, places), hosts.values()), strict=True):
                found[kind] = profile | {"outside": hosts[kind].seen_as}
        # what comes next in the order of ports
        hosts["symmetric-seq"].socket().sendto(b"?", listener.getsockname())
        found["symmetric-seq"]["next_port"] = listener.recvfrom(64)[1][1]
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind(kind: str, found: dict[str, dict[str, Any]]):
    profile, truth = found[kind], seen(kind)
    if not truth.udp:
        assert profile["udp_blocked"]
        assert profile["mapping"] == profile["filtering"] == profile["ports"] == "unknown"
        return
    assert not profile["udp_blocked"]
    assert profile["external"] == profile["outside"]
    assert profile["translated"] == (kind not in ("none", "firewall"))
    assert profile["mapping"] == truth.mapping
    assert profile["filtering"] == truth.filtering
    assert profile["ports"] == PORTS_FOUND[truth.ports]


def test_nothing_comes_after_the_samples(found: dict[str, dict[str, Any]]):
    """So that the next mapping of a sequential NAT can be foretold."""
    profile = found["symmetric-seq"]
    assert profile["ports_detail"] == f"sequential (+1 from {profile['next_port'] - 1})"
