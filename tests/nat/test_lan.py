"""Two nodes in one local network that has lost the internet: the node id is enough (mDNS)."""

from __future__ import annotations

import time

from driver import HANG, Node
from lab import Lab


def test_neighbours_find_each_other():
    lab = Lab()
    home = lab.nat("home", "port-restricted")
    hosts = [lab.host(name, behind=[home]) for name in "ab"]
    with lab:
        hosts[0].cut()
        alice, bob = (Node(host) for host in hosts)
        for node in (alice, bob):
            node.start(listen="[::]:0", lan=True)
        for dialler, other in ((alice, bob), (bob, alice)):
            found = connect(dialler, other.node_id)
            assert found["status"] == 200, found
            assert found["echoed"]
            assert found["path"].rpartition(":")[0] == other.host.address
        for node in (alice, bob):
            node.ask("close")


def connect(dialler: Node, node_id: str) -> dict[str, object]:
    """A connection, as soon as the other one has been heard of."""
    deadline = time.monotonic() + HANG
    while True:
        found = dialler.ask("connect", node=node_id)
        if found["status"] == 200 or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
