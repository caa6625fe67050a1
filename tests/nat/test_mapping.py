"""A port that a real gateway opens: the internet reaches the host through it, until it is given back."""

from __future__ import annotations

import sys

import pytest
from driver import HANG, Program
from lab import Lab, LabError, mapper
from lab.system import run

PORT = 4433
# tells its external address, and at the first line of input gives the port back
MAPPING = f"""
import json, sys
from keynet import _keynet
mapping = _keynet.PortMapping.start({PORT}, None)
print(json.dumps({{"external": mapping.wait({HANG}, None)}}), flush=True)
sys.stdin.readline()
mapping.close(None)
print(json.dumps({{}}), flush=True)
"""
# for what must not arrive
QUIET = 0.1


@pytest.mark.parametrize("protocols", ["pcp", "upnp", "both"])
def test_a_port_is_opened_and_given_back(protocols: str):
    if why := mapper.why_not():
        pytest.skip(why)
    lab = Lab()
    outside, host = lab.server("outside"), lab.host("a", f"linux-masquerade:mapper={protocols}")
    with lab:
        node, stranger = host.socket(), outside.socket()
        node.bind((host.address, PORT))
        stranger.bind((outside.address, 0))
        node.settimeout(HANG)
        mapping = Program(host, sys.executable, "-c", MAPPING)
        external = mapping.read()["external"]
        assert external == f"{host.seen_as}:{PORT}"
        stranger.sendto(b"unasked", (host.seen_as, PORT))
        assert node.recvfrom(64) == (b"unasked", stranger.getsockname())
        assert mapped(host.nat.namespace) == 1
        assert mapping.process.stdin
        mapping.process.stdin.write(b"\n")
        mapping.process.stdin.flush()
        mapping.read()
        assert mapped(host.nat.namespace) == 0
        late = outside.socket()
        late.sendto(b"late", (host.seen_as, PORT))
        node.settimeout(QUIET)
        with pytest.raises(TimeoutError):
            node.recv(64)


@pytest.mark.parametrize("kind", ["symmetric:mapper=pcp", "cgnat:mapper=upnp", "firewall:mapper=both"])
def test_other_boxes_open_none(kind: str):
    with pytest.raises(LabError, match="masquerading"):
        Lab().host("a", kind)


def mapped(namespace: str) -> int:
    """How many ports are open."""
    return run("nft", "list", "chain", "inet", "mapper", "to_inside", namespace=namespace).count("dnat")
