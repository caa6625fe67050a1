"""What a laboratory consists of: hosts and the boxes in front of them."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .kinds import Box
from .rules import COUNT, SHUT, count, cut, mend, ruleset
from .system import LabError, in_namespace, ip, run

if TYPE_CHECKING:
    from .lab import Lab

GATEWAY4, GATEWAY6 = "203.0.113.1", "fe80::1"


class Node:
    """A namespace of a laboratory."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, name
        self.namespace = f"{lab.prefix}-{name}"

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """A child process here. It ends with the laboratory."""
        self.lab.must_stand()
        # in a session of its own: Ctrl-C is for the owner, who ends it in its own way
        with in_namespace(self.namespace):
            child = subprocess.Popen(command, start_new_session=True, **options)
        self.lab.children.append(child)
        return child


class Nat(Node):
    """A box: `wan0` outside, towards the internet or another box; `lan0` inside."""

    def __init__(self, lab: Lab, name: str, box: Box, number: int, outer: Nat | None) -> None:
        super().__init__(lab, name)
        self.box, self.outer = box, outer
        self.port = lab.next_port()
        self.inside = 0
        # a firewall has public addresses inside; a box with boxes inside, the shared range of RFC 6598, is a carrier's
        network = {"firewall": f"192.0.2.{8 * number}/29"}.get(box.engine, f"192.168.{number}.0/24")
        self.lan = ipaddress.IPv4Network(network)
        self.lan6 = ipaddress.IPv6Network(f"2001:db8:1:{number:x}::/64") if box.ipv6 else None
        if box.mapper != "none" and (box.engine != "masquerade" or outer is not None):
            raise LabError(f"{name}: ports are opened only by a masquerading box that stands at the internet")
        if outer is None:
            # miniupnpd opens no port at an address that is for documentation
            public = "198.51.100" if box.mapper == "none" else "11.0.0"
            self.address, self.address6 = f"{public}.{number}", f"2001:db8:6::{number:x}"
        else:
            outer.carry()
            self.address, self.address6 = outer.take_address()[0], ""
        if box.ipv6 and outer is not None:
            raise LabError(f"{name}: IPv6 only behind a box that stands at the internet")

    def carry(self) -> None:
        """It has boxes inside: a carrier has the shared range there (RFC 6598)."""
        if not self.inside and self.lan.subnet_of(ipaddress.IPv4Network("192.168.0.0/16")):
            self.lan = ipaddress.IPv4Network(f"100.64.{self.lan.network_address.packed[2]}.0/24")

    @property
    def outermost(self) -> Nat:
        """The box of the chain that stands at the internet."""
        return self.outer.outermost if self.outer else self

    @property
    def gateway(self) -> str:
        """Its address on the inside."""
        return str(self.lan[1])

    def take_address(self) -> tuple[str, str | None]:
        """The next free addresses inside."""
        self.inside += 1
        if self.inside + 2 >= self.lan.num_addresses:
            raise LabError(f"no address left in {self.lan}")
        return str(self.lan[1 + self.inside]), str(self.lan6[1 + self.inside]) if self.lan6 else None

    def load_rules(self) -> None:
        """Puts its rules in place of those it had."""
        rules = ruleset(self.box, self.address, str(self.lan[2]))
        run("nft", "-f", "-", namespace=self.namespace, text=f"flush ruleset\n{rules}")

    def forget(self) -> None:
        """Loses every mapping, as a router does that starts again: what goes on behind it is mapped anew."""
        # in between nothing may pass: a packet of a flow that is still known would bring its mapping back
        run("nft", "-f", "-", namespace=self.namespace, text=f"flush ruleset\n{SHUT}")
        run("conntrack", "-F", namespace=self.namespace)
        self.load_rules()

    def set_mtu(self, mtu: int) -> None:
        """Its network inside carries packets of this size. It knows, as routers know what they are attached to: it cuts
        what is larger, or says so where that is forbidden."""
        ip([f"link set lan0 mtu {mtu}"], self.namespace)

    def set_address(self, address: str) -> None:
        """The provider hands out another address; the mappings are lost."""
        if self.outer:
            raise LabError("only a box that stands at the internet has its address from a provider")
        old, self.address = self.address, address
        mine = [f"addr add {address}/32 dev wan0", f"addr del {old}/32 dev wan0"]
        # the routes that preferred the old address went with it
        ip([*mine, *self.lab.default_route(self.port, replace=True)], self.namespace)
        inside = [f"route delete {old}/32 dev {self.port}", f"route add {address}/32 dev {self.port}"]
        if self.box.engine == "firewall":
            inside.append(f"route replace {self.lan} via {address} dev {self.port} onlink")
        ip(inside, self.lab.internet)
        self.forget()


class Host(Node):
    """A machine for programs: at the internet itself, or behind one box, or with an uplink to each of several."""

    def __init__(self, lab: Lab, name: str, uplinks: Sequence[Nat], addresses: Sequence[str] = ()) -> None:
        super().__init__(lab, name)
        self.uplinks = tuple(uplinks)
        self.public = list(addresses)
        self.port = "" if uplinks else lab.next_port()
        taken = [nat.take_address() for nat in uplinks]
        self.inside = [(v4, v6) for v4, v6 in taken]

    @property
    def address(self) -> str:
        """Its own IPv4 address; behind a NAT a private one."""
        return self.inside[0][0] if self.uplinks else self.public[0]

    @property
    def address6(self) -> str | None:
        """Its own IPv6 address."""
        if self.uplinks:
            return self.inside[0][1]
        return next((address for address in self.public if ":" in address), None)

    @property
    def has_ipv4(self) -> bool:
        """Whether IPv4 leads anywhere from here."""
        return not self.uplinks or self.uplinks[0].box.ipv4

    @property
    def seen_as(self) -> str:
        """The IPv4 address that the internet sees."""
        if not self.uplinks or self.uplinks[0].box.engine == "firewall":
            return self.address
        return self.uplinks[0].outermost.address

    @property
    def nat(self) -> Nat:
        """The box in front of it."""
        if not self.uplinks:
            raise LabError(f"{self.name} has no box in front of it")
        return self.uplinks[0]

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a short command in this host; gives its output."""
        self.lab.must_stand()
        return run(*command, namespace=self.namespace, check=check)

    def socket(self, family: socket.AddressFamily = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A socket of this host, for this process."""
        self.lab.must_stand()
        with in_namespace(self.namespace):
            return socket.socket(family, kind)

    def use_uplink(self, which: int) -> None:
        """Goes over to another uplink: the interfaces of the others are taken down, and their addresses with them."""
        downs = [f"link set eth{n} down" for n in range(len(self.uplinks)) if n != which]
        ip([*downs, f"link set eth{which} up", *self.lab.uplink_routes(self, which)], self.namespace)

    def cut(self, what: str = "") -> None:
        """Loses every packet between this host and the internet, both ways, and tells nobody.

        `what`: only those that this expression of nftables is true for, such as "meta nfproto ipv6".
        """
        for port in self._ports():
            run("nft", "-f", "-", namespace=self.lab.internet, text=cut(port, what))

    def mend(self) -> None:
        """Ends what `cut` began."""
        for port in self._ports():
            run("nft", "-f", "-", namespace=self.lab.internet, text=mend(port))

    def count(self, other: Host) -> Counter:
        """Counts what goes between this host and another one through the internet, from now on."""
        (one,), (two,) = self._ports(), other._ports()
        run("nft", "-f", "-", namespace=self.lab.internet, text=count(one, two))
        return Counter(self.lab, f"{COUNT}-{one}-{two}")

    def _ports(self) -> list[str]:
        return [nat.outermost.port for nat in self.uplinks] or [self.port]


class Counter:
    """Packets and bytes of IP, each way."""

    def __init__(self, lab: Lab, table: str) -> None:
        self._lab, self._table = lab, table

    def read(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(packets, bytes) there, and back."""
        text = run("nft", "-j", "list", "counters", "table", "inet", self._table, namespace=self._lab.internet)
        counters = [item["counter"] for item in json.loads(text)["nftables"] if "counter" in item]
        found = {counter["name"]: (counter["packets"], counter["bytes"]) for counter in counters}
        return found["there"], found["back"]
