"""How the two nodes of a test find each other: both register at one rendezvous, and know nothing but a node id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from driver import Failed, Node, Rendezvous
from lab import Host


class Meeting:
    """A rendezvous, and what its nodes have to do with it."""

    def __init__(self, server: Host, *, relays: Sequence[Sequence[str]] = ()) -> None:
        self.rendezvous = Rendezvous(server, relays=relays)

    def start(self, node: Node, **options: Any) -> None:
        """Starts a node that registers."""
        node.start(rendezvous=[self.rendezvous.place(ipv6=not node.host.has_ipv4)], **options)

    def settle(self, *nodes: Node, again: bool = False) -> None:
        """Waits until each is registered, after a loss if `again`, and knows its NAT; without UDP none ever will."""
        for node in nodes:
            has_udp = all(nat.box.udp for nat in node.host.uplinks)
            if has_udp and not node.ask("registered", again=again)["registered"]:
                raise Failed(f"{node.host.name} did not register: {node.ask('status')}")
