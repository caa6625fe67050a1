"""How the two nodes of a test find each other: both register at one rendezvous, and know nothing but a node id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from driver import RELAY, RELAY_TLS, Failed, Node, Rendezvous, at
from lab import Host

DOCUMENTATION = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")


class Meeting:
    """A rendezvous, and what its nodes have to do with it."""

    def __init__(
        self,
        server: Host,
        *,
        relays: Sequence[Sequence[str]] = (),
        own_relay: bool = False,
        more_ports: Sequence[int] = (),
        max_nodes: int = 100,
    ) -> None:
        """`relays`: the URIs of each that the rendezvous names; `own_relay`: it runs one, over TLS too.

        `more_ports`: over UDP and TCP there as well.
        """
        more: list[str] = []
        if own_relay:
            hosts = [at(address, 0)[:-2] for address in (server.address, server.address6) if address]
            ports = [RELAY, *more_ports]
            more += [word for host in hosts for port in ports for word in ("--relay", f"{host}:{port}")]
            more += [word for host in hosts for word in ("--relay-tls", f"{host}:{RELAY_TLS}")]
            if server.uplinks:
                more += ["--relay-external", server.seen_as]
            # the public addresses of the laboratory are those for documentation, which no relay carries to by itself
            more += [word for network in DOCUMENTATION for word in ("--relay-allow-peer", network)]
        self.has_relay = own_relay or bool(relays)
        self.rendezvous = Rendezvous(server, relays=relays, more=more, max_nodes=max_nodes)

    def start(self, node: Node, **options: Any) -> None:
        """Starts a node that registers."""
        node.start(rendezvous=[self.rendezvous.place(ipv6=not node.host.has_ipv4)], **options)

    def pair(self, one: Host, other: Host) -> tuple[Node, Node]:
        """A node on each, registered; the other's is there first."""
        a, b = Node(one), Node(other)
        for node in (b, a):
            self.start(node)
        self.settle(a, b)
        return a, b

    def settle(self, *nodes: Node, again: bool = False) -> None:
        """Waits until each is registered, after a loss if `again`, and knows its NAT; without UDP none ever will."""
        for node in nodes:
            has_udp = all(nat.box.udp for nat in node.host.uplinks)
            if (has_udp or self.has_relay) and not node.ask("registered", again=again)["registered"]:
                raise Failed(f"{node.host.name} did not register: {node.ask('status')}")
