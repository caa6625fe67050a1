"""Every kind of box behaves as its class of RFC 4787 says: told from outside, by plain sockets."""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import time
from collections.abc import Iterator

import pytest
from lab import KINDS, Host, Lab, seen

# of the boxes here, in seconds: the kernel counts whole ones
TIMEOUT = 2
# for what must not arrive, after everything that may arrive has
QUIET = 0.1
# a guard against hangs
HANG = 5.0


class Answerer:
    """Sockets of the server: two ports of its first address, one of its second."""

    def __init__(self, server: Host) -> None:
        self.sockets = []
        for address, port in ((server.public[0], 5000), (server.public[0], 5001), (server.public[1], 5000)):
            made = server.socket()
            made.bind((address, port))
            made.settimeout(HANG)
            self.sockets.append(made)

    def see(self, host_socket: socket.socket, which: int = 0) -> tuple[str, int]:
        """The address that a socket has for one of ours."""
        host_socket.sendto(b"who am I?", self.sockets[which].getsockname())
        return self.sockets[which].recvfrom(64)[1]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    lab.server("server")
    for kind in KINDS:
        lab.host(kind, kind if kind == "none" else f"{kind}:timeout={TIMEOUT}")
    with lab:
        yield lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> Answerer:
    return Answerer(lab.hosts["server"])


IPV6_KINDS = ("firewall:ipv6=yes", "symmetric:ipv6=yes", "firewall:ipv4=no,ipv6=yes")
WITH_UDP = [kind for kind in KINDS if seen(kind).udp]


@pytest.mark.parametrize("kind", WITH_UDP)
def test_mapping(kind: str, lab: Lab, server: Answerer):
    probe = lab.hosts[kind].socket()
    one, other_port, other_address = (server.see(probe, which) for which in range(3))
    assert one[0] == lab.hosts[kind].seen_as
    if seen(kind).mapping == "endpoint-independent":
        assert one == other_port == other_address
    else:
        assert len({one, other_port, other_address}) == 3


@pytest.mark.parametrize("kind", WITH_UDP)
def test_ports(kind: str, lab: Lab, server: Answerer):
    probes = [lab.hosts[kind].socket() for _ in range(5)]
    ports = [server.see(probe)[1] for probe in probes]
    own = [probe.getsockname()[1] for probe in probes]
    steps = {after - before for before, after in itertools.pairwise(ports)}
    found = "preserved" if ports == own else "sequential" if steps == {1} else "random"
    assert found == seen(kind).ports


@pytest.mark.parametrize("kind", WITH_UDP)
def test_filtering(kind: str, lab: Lab, server: Answerer):
    probe = lab.hosts[kind].socket()
    outside = server.see(probe)
    # the one that may send comes last: what the others sent is there by then, or never will be
    for which in (2, 1, 0):
        server.sockets[which].sendto(bytes([which]), outside)
    expected = {
        "endpoint-independent": {0, 1, 2},
        "address-dependent": {0, 1},
        "address-and-port-dependent": {0},
    }
    assert received(probe) == expected[seen(kind).filtering]


def received(probe: socket.socket, patience: float = QUIET) -> set[int]:
    """What has arrived, or arrives in a moment."""
    probe.settimeout(patience)
    found = set()
    with contextlib.suppress(TimeoutError):
        while True:
            found.add(probe.recv(64)[0])
    return found


def test_timeouts(lab: Lab, server: Answerer):
    """A mapping goes when nothing used it for its time, whichever way; a mapping in use stays."""
    used = {kind: lab.hosts[kind].socket() for kind in WITH_UDP if kind != "none"}
    idle = {kind: lab.hosts[kind].socket() for kind in used}
    outside = {probe: server.see(probe) for probe in (*used.values(), *idle.values())}
    for _ in range(6):
        time.sleep(TIMEOUT / 3)
        for probe in used.values():
            probe.sendto(b"\1", server.sockets[0].getsockname())
            server.sockets[0].recv(64)
    time.sleep(TIMEOUT / 2)
    for address in outside.values():
        server.sockets[0].sendto(b"\0", address)
    time.sleep(QUIET)
    assert {kind: received(probe, 0.001) for kind, probe in used.items()} == {kind: {0} for kind in used}
    assert {kind: received(probe, 0.001) for kind, probe in idle.items()} == {kind: set() for kind in idle}


def test_no_udp(lab: Lab, server: Answerer):
    host = lab.hosts["udp-blocked"]
    host.socket().sendto(b"?", server.sockets[0].getsockname())
    server.sockets[0].settimeout(QUIET)
    with pytest.raises(TimeoutError):
        server.sockets[0].recv(64)
    server.sockets[0].settimeout(HANG)
    with contextlib.closing(lab.hosts["server"].socket(kind=socket.SOCK_STREAM)) as listener:
        listener.bind((lab.hosts["server"].address, 443))
        listener.listen()
        with contextlib.closing(host.socket(kind=socket.SOCK_STREAM)) as client:
            client.settimeout(HANG)
            client.connect(listener.getsockname())


def test_nothing_but_a_program_in_the_box_gets_out():
    lab = Lab()
    server = lab.server("server")
    shut = {tcp: lab.host(tcp, f"udp-blocked:tcp={tcp}") for tcp in ("dropped", "rejected")}
    with lab, contextlib.closing(server.socket(kind=socket.SOCK_STREAM)) as listener:
        listener.bind((server.address, 443))
        listener.listen()
        listener.settimeout(HANG)
        for tcp, host in shut.items():
            with contextlib.closing(host.socket(kind=socket.SOCK_STREAM)) as client:
                client.settimeout(QUIET if tcp == "dropped" else HANG)
                with pytest.raises(TimeoutError if tcp == "dropped" else OSError) as failed:
                    client.connect(listener.getsockname())
                assert isinstance(failed.value, TimeoutError) == (tcp == "dropped")
            connect = f"import socket; socket.create_connection({listener.getsockname()!r}, {HANG})"
            assert host.nat.popen([sys.executable, "-c", connect]).wait(2 * HANG) == 0
            assert listener.accept()[1][0] == host.seen_as


def test_an_address_translated_one_to_one():
    """Every port is its host's own, from whoever, and nothing is turned round."""
    lab = Lab()
    server, host = lab.server("server"), lab.host("cloud", "full-cone:engine=one-to-one")
    with lab:
        answerer, probe = Answerer(server), host.socket()
        probe.bind((host.address, 5000))
        for which in (2, 1, 0):
            answerer.sockets[which].sendto(bytes([which]), (host.seen_as, 5000))
        assert received(probe) == {0, 1, 2}
        assert answerer.see(probe) == (host.seen_as, 5000)
        host.socket().sendto(b"\1", (host.seen_as, 5000))
        assert received(probe) == set()


@pytest.mark.parametrize("hairpin", [False, True])
@pytest.mark.parametrize("kind", ["full-cone", "address-restricted", "port-restricted"])
def test_hairpin(kind: str, hairpin: bool):
    lab = Lab()
    server, home = lab.server("server"), lab.nat("home", f"{kind}:hairpin={'yes' if hairpin else 'no'}")
    a, b = (lab.host(name, behind=[home]) for name in "ab")
    with lab:
        answerer = Answerer(server)
        one, other = a.socket(), b.socket()
        seen_one, seen_other = answerer.see(one), answerer.see(other)
        assert seen_one != seen_other
        one.sendto(b"\1", seen_other)
        # RFC 4787, REQ-9: from the outside address
        other.sendto(b"\2", seen_one)
        one.settimeout(QUIET)
        try:
            assert one.recvfrom(64) == (b"\2", seen_other)
            came = True
        except TimeoutError:
            came = False
        assert came == hairpin


def test_ipv6_behind_a_firewall():
    """Out and back yes, unasked no; and two firewalled hosts reach each other when both have begun."""
    lab = Lab()
    server = lab.server("server")
    hosts = [lab.host(name, kind) for name, kind in zip("abc", IPV6_KINDS, strict=True)]
    with lab:
        ask, other = (server.socket(socket.AF_INET6) for _ in range(2))
        for port, made in enumerate((ask, other), 5000):
            made.bind((server.address6, port))
            made.settimeout(HANG)
        probes = [host.socket(socket.AF_INET6) for host in hosts]
        for host, probe in zip(hosts, probes, strict=True):
            probe.sendto(b"?", ask.getsockname())
            source = ask.recvfrom(64)[1]
            assert source[0] == host.address6
            other.sendto(b"\1", source)
            ask.sendto(b"\0", source)
            assert received(probe) == {0}
        ends = [(host.address6, probe.getsockname()[1]) for host, probe in zip(hosts, probes, strict=True)]
        probes[0].sendto(b"\1", ends[1])
        probes[1].sendto(b"\2", ends[0])
        assert received(probes[0]) == {2}
        assert received(probes[1]) == set()
        with pytest.raises(OSError, match="unreachable"):
            hosts[2].socket().sendto(b"?", (server.address, 5000))


def test_an_open_input_moves_the_mapping():
    """A packet that comes before the host's own makes a plain Linux router with an open input choose another port."""
    lab = Lab()
    server = lab.server("server")
    hosts = {kind: lab.host(kind, kind) for kind in ("linux-masquerade", "linux-open-input")}
    with lab:
        answerer = Answerer(server)
        kept = {}
        for kind, host in hosts.items():
            probe = host.socket()
            outside = answerer.see(probe)
            answerer.sockets[2].sendto(b"early", outside)
            time.sleep(QUIET)
            kept[kind] = answerer.see(probe, 2) == outside
        assert kept == {"linux-masquerade": True, "linux-open-input": False}
