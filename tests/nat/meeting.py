"""How the two nodes of a test find each other: at a rendezvous; or, with a core that knows none, told by the test."""

from __future__ import annotations

import inspect
from typing import Any

from driver import RENDEZVOUS, Node, Rendezvous, at
from lab import Host

import keynet

HAS_RENDEZVOUS = "rendezvous" in inspect.signature(keynet.Proxy).parameters


class AtRendezvous:
    """Both are registered at one rendezvous, and the dialler knows the other's node id alone."""

    def __init__(self, server: Host) -> None:
        self.rendezvous = Rendezvous(server)

    def start(self, node: Node, **options: Any) -> None:
        """Starts a node that registers."""
        node.start(rendezvous=[self.rendezvous.place(ipv6=not node.host.has_ipv4)], **options)

    def introduce(self, dialler: Node, other: Node) -> None:
        """Only waits until the other is there; whoever has no UDP never will be."""
        if all(nat.box.udp for nat in other.host.uplinks):
            other.ask("registered")


class Told:
    """The test asks a public node which addresses it sees, tells each node the other's, and both begin together."""

    def __init__(self, server: Host) -> None:
        self._seed = Node(server)
        self._seed.start(listen=f"[::]:{RENDEZVOUS}")

    def start(self, node: Node, **options: Any) -> None:
        """Starts a node."""
        node.start(**options)

    def introduce(self, dialler: Node, other: Node) -> None:
        """Tells each where the other is, and lets the other open its NAT."""
        for one, two in ((dialler, other), (other, dialler)):
            one.ask("tell", node=two.node_id, addresses=self._addresses(two))
        other.begin("expect", node=dialler.node_id)

    def _addresses(self, node: Node) -> list[str]:
        found = [at(node.host.address, node.port)] if node.host.has_ipv4 else []
        server = self._seed.host
        places = [server.address] if node.host.has_ipv4 else []
        places += [str(server.address6)] if node.host.address6 else []
        for place in places:
            node.ask("tell", node=self._seed.node_id, addresses=[at(place, RENDEZVOUS)])
            found.append(node.ask("expect", node=self._seed.node_id)["observed"])
        return found


Meeting = AtRendezvous | Told


def meet(server: Host) -> Meeting:
    """What this core can."""
    return AtRendezvous(server) if HAS_RENDEZVOUS else Told(server)
