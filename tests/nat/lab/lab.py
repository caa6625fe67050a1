"""`Lab`: declares hosts and boxes, makes them, and takes them away whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import secrets
import signal
import subprocess
import sys
import threading
import types
import weakref
from pathlib import Path

from . import link, mapper, state
from .kinds import Box, boxes
from .nodes import GATEWAY4, GATEWAY6, Host, Nat, Node
from .rules import CUT
from .system import LabError, in_namespace, ip, remove, run

# of the addresses inside: 31 boxes with a public /29 fit into the documentation range 192.0.2.0/24
MAX_NATS = 31
# for the children of a host to end by themselves
_GRACE = 2.0


class Lab:
    """A closed set of namespaces: nothing in it is attached to the machine's own network.

        lab = Lab(rtt_ms=40)
        server = lab.server("s")                      # 203.0.113.11 and .12, 2001:db8:5::b and ::c
        a = lab.host("a", "symmetric")                # with a box of its own
        home = lab.nat("home", "full-cone:hairpin=1")
        b, c = lab.host("b", behind=[home]), lab.host("c", behind=[home])
        with lab:
            a.popen(["ping", server.address])

    Several may stand at a time, with the same addresses inside. `rtt_ms` is the round trip between two hosts that are
    not servers and not behind one box: each access link delays a quarter of it, each way. To a server it is half.
    """

    def __init__(self, *, tag: str | None = None, rtt_ms: float = 0.0) -> None:
        self.tag = tag or secrets.token_hex(3)
        self.prefix = f"{state.PREFIX}{self.tag}"
        self.internet = f"{self.prefix}-internet"
        self.hosts: dict[str, Host] = {}
        self.nats: dict[str, Nat] = {}
        self.children: list[subprocess.Popen[bytes]] = []
        self._delay_ms = rtt_ms / 4
        self._links: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = self._servers = self._numbers = 0
        self._stands = False
        self._lock = threading.RLock()

    # -- declaring ---------------------------------------------------------------------------------------------------

    def server(self, name: str) -> Host:
        """A public host with two addresses of each family, for STUN as in RFC 5780, and without an access link."""
        first = 11 + 2 * self._servers
        self._servers += 1
        numbers = (first, first + 1)
        addresses = [f"203.0.113.{n}" for n in numbers] + [f"2001:db8:5::{n:x}" for n in numbers]
        return self._add(Host(self, name, (), addresses))

    def nat(self, name: str, kind: str, *, outer: Nat | None = None) -> Nat:
        """A box of a kind that has one; `outer` is the box that it is behind, if any."""
        (box,) = boxes(kind)
        return self._nat(name, box, outer)

    def host(self, name: str, kind: str = "none", *, behind: list[Nat] | None = None) -> Host:
        """A host with boxes of its own as `kind` says, or with an uplink to each of the boxes it is put behind."""
        if behind is None:
            inner: Nat | None = None
            chain = boxes(kind)
            for depth, box in reversed(list(enumerate(chain))):
                inner = self._nat(f"{name}-nat{depth}", box, inner)
            behind = [inner] if inner else []
        number = self._number() if not behind else 0
        return self._add(Host(self, name, behind, [f"198.51.100.{number}", f"2001:db8:6::{number:x}"]))

    def _nat(self, name: str, box: Box, outer: Nat | None) -> Nat:
        nat = Nat(self, name, box, self._number(), outer)
        self._check_name(name)
        self.nats[name] = nat
        return nat

    def _number(self) -> int:
        self._numbers += 1
        if self._numbers > MAX_NATS:
            raise LabError(f"more than {MAX_NATS} boxes and public hosts in one laboratory")
        return self._numbers

    def _add(self, host: Host) -> Host:
        self._check_name(host.name)
        self.hosts[host.name] = host
        return host

    def _check_name(self, name: str) -> None:
        if self._stands or name in self.hosts or name in self.nats or not name.replace("-", "").isalnum():
            raise LabError(f"{name}: taken, not made of letters, digits and -, or the laboratory stands already")

    def next_port(self) -> str:
        """A name for the other end of a node's cable."""
        self._ports += 1
        return f"p{self._ports}"

    def must_stand(self) -> None:
        """Refuses what needs the namespaces."""
        if not self._stands:
            raise LabError("the laboratory does not stand: use `with lab:`")

    # -- making ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        end_on_sigterm()
        state.sweep()
        with self._lock:
            _standing.add(self)
            try:
                self._make()
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _nodes(self) -> list[Node]:
        return [*self.nats.values(), *self.hosts.values()]

    def _make(self) -> None:
        namespaces = {"internet": self.internet, **{node.name: node.namespace for node in self._nodes}}
        state.save(self.tag, namespaces)
        ip(f"netns add {name}" for name in namespaces.values())
        self._stands = True
        routers = {self.internet, *(nat.namespace for nat in self.nats.values())}
        for name in namespaces.values():
            _settings(name, forwards=name in routers)
        for nat in self.nats.values():
            _timeouts(nat)
        self._make_internet()
        for nat in self.nats.values():
            self._make_nat(nat)
        for host in self.hosts.values():
            self._make_host(host)

    def _make_internet(self) -> None:
        ip([f"addr add {GATEWAY4}/32 dev lo", "link set lo up", "route add blackhole default"], self.internet)
        run("nft", "-f", "-", namespace=self.internet, text=CUT)
        for node in self._nodes:
            if isinstance(node, Nat) and node.outer is None:
                inside = [str(node.lan)] if node.box.engine == "firewall" else []
                inside += [str(node.lan6)] if node.lan6 else []
                self._attach(node, node.port, [node.address, str(node.address6)], inside, self._delay_ms)
            elif isinstance(node, Host) and not node.uplinks:
                is_server = node.address.startswith("203.")
                self._attach(node, node.port, node.public, [], 0 if is_server else self._delay_ms)

    def _attach(self, node: Node, port: str, addresses: list[str], inside: list[str], delay_ms: float) -> None:
        """Lays the cable between a node and the internet, and the routes there."""
        if delay_ms:
            self._links[port] = link.start((node.namespace, "wan0"), (self.internet, port), delay_ms)
            lines = [f"link set {port} up"]
        else:
            lines = [f"link add {port} type veth peer name wan0 netns {node.namespace}"]
            lines += [f"link set {port} up", f"addr add {GATEWAY6}/64 dev {port} nodad"]
        for address in addresses:
            # a point-to-point device has no neighbours to ask for
            via = "" if delay_ms or "." in address else "via fe80::2"
            lines.append(f"route add {address} {via} dev {port}")
        for network in inside:
            via = "" if delay_ms else f"via {addresses[0]}" if "." in network else "via fe80::2"
            lines.append(f"route add {network} {via} dev {port} {'onlink' if via and '.' in network else ''}")
        ip(lines, self.internet)
        lines = ["link set lo up", "link set wan0 up"]
        lines += [f"addr add {address} dev wan0" for address in addresses if "." in address]
        # the first one is the source of what chooses none itself
        sixes = [address for address in addresses if ":" in address]
        lines += [f"addr add {address} dev wan0 nodad preferred_lft 0" for address in sixes[1:]]
        lines += [f"addr add {address} dev wan0 nodad" for address in sixes[:1]]
        ip([*lines, *([] if delay_ms else ["addr add fe80::2/64 dev wan0 nodad"])], node.namespace)
        ip(self.default_route(port), node.namespace)

    def default_route(self, port: str, *, replace: bool = False) -> list[str]:
        """Towards the internet, for a node whose cable ends there at `port`."""
        verb = "replace" if replace else "add"
        if port in self._links:
            return [f"route {verb} default dev wan0", f"route {verb} ::/0 dev wan0"]
        return [
            f"route {verb} {GATEWAY4} dev wan0 scope link",
            f"route {verb} default via {GATEWAY4} dev wan0",
            f"route {verb} ::/0 via {GATEWAY6} dev wan0",
        ]

    def _make_nat(self, nat: Nat) -> None:
        lines = ["link set lo up", "link add lan0 type bridge", "link set lan0 up"]
        lines.append(f"addr add {nat.gateway}/{nat.lan.prefixlen} dev lan0")
        if nat.lan6:
            lines += [f"addr add {nat.lan6[1]}/64 dev lan0 nodad"]
        ip(lines, nat.namespace)
        if nat.outer:
            _plug_in(nat, "wan0", nat.outer, nat.port)
            ip([f"addr add {nat.address}/{nat.outer.lan.prefixlen} dev wan0"], nat.namespace)
            ip([f"route add default via {nat.outer.gateway} dev wan0"], nat.namespace)
        nat.load_rules()
        if nat.box.mapper != "none":
            self.children.append(mapper.start(nat))

    def _make_host(self, host: Host) -> None:
        ip(["link set lo up"], host.namespace)
        for n, (nat, (v4, v6)) in enumerate(zip(host.uplinks, host.inside, strict=True)):
            _plug_in(host, f"eth{n}", nat, self.next_port())
            lines = [f"addr add {v4}/{nat.lan.prefixlen} dev eth{n}"] if nat.box.ipv4 else []
            lines += [f"addr add {v6}/64 dev eth{n} nodad"] if v6 else []
            ip(lines, host.namespace)
        if host.uplinks:
            host.use_uplink(0)

    def uplink_routes(self, host: Host, which: int) -> list[str]:
        """The routes and addresses of a host whose interface `which` has come up."""
        nat, (_, v6) = host.uplinks[which], host.inside[which]
        lines = [f"route replace default via {nat.gateway} dev eth{which}"] if nat.box.ipv4 else []
        if v6 and nat.lan6:
            # IPv6 addresses go when an interface is taken down, IPv4's stay
            lines += [
                f"addr replace {v6}/64 dev eth{which} nodad",
                f"route replace ::/0 via {nat.lan6[1]} dev eth{which}",
            ]
        return lines

    # -- ending ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends every child and takes the namespaces away; may be called again."""
        with self._lock:
            if self not in _standing:
                return
            self._stands = False
            for child in self.children:
                with contextlib.suppress(OSError, ValueError):
                    if child.stdin:
                        child.stdin.close()
                child.terminate()
            for child in [*self.children, *self._links.values()]:
                _reap(child, by_force=child in self._links.values())
            remove([node.namespace for node in self._nodes] + [self.internet])
            state.drop(self.tag)
            _standing.discard(self)


def _plug_in(node: Node, device: str, into: Nat, port: str) -> None:
    """Lays a cable from a device of a node to the inside of a box."""
    ip(
        [
            f"link add {port} type veth peer name {device} netns {node.namespace}",
            f"link set {port} master lan0 up",
        ],
        into.namespace,
    )
    ip([f"link set {device} up"], node.namespace)


def _settings(namespace: str, *, forwards: bool) -> None:
    values = {f"ipv4/conf/{which}/rp_filter": 0 for which in ("all", "default")}
    values |= {f"ipv4/conf/{which}/send_redirects": 0 for which in ("all", "default")}
    values |= {f"ipv6/conf/{which}/accept_dad": 0 for which in ("all", "default")}
    values |= {f"ipv6/conf/{which}/accept_ra": 0 for which in ("all", "default")}
    # no link-local addresses but those given below
    values["ipv6/conf/default/addr_gen_mode"] = 1
    if forwards:
        values |= {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
    # where this is on, a bridge translates what it carries by itself, and only by half
    bridges = [f"bridge/bridge-nf-call-{which}" for which in ("iptables", "ip6tables", "arptables")]
    with in_namespace(namespace):
        values |= {key: 0 for key in bridges if Path("/proc/sys/net", key).exists()}
        for key, value in values.items():
            Path("/proc/sys/net", key).write_text(str(value))


def _timeouts(nat: Nat) -> None:
    with in_namespace(nat.namespace):
        for which in ("timeout", "timeout_stream"):
            Path(f"/proc/sys/net/netfilter/nf_conntrack_udp_{which}").write_text(str(nat.box.timeout))


def _reap(child: subprocess.Popen[bytes], *, by_force: bool) -> None:
    if by_force:
        child.kill()
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()


# the laboratories of this process
_standing: weakref.WeakSet[Lab] = weakref.WeakSet()


@atexit.register
def stop_all() -> None:
    """Takes away every laboratory of this process."""
    for lab in list(_standing):
        lab.stop()


def end_on_sigterm() -> None:
    """Makes SIGTERM take the laboratories away, unless the program does something else with it."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:

        def end(number: int, frame: types.FrameType | None) -> None:
            stop_all()
            sys.exit(128 + number)

        signal.signal(signal.SIGTERM, end)
