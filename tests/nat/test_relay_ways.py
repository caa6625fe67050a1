"""Ways to relays that not everybody has: by an HTTP proxy alone, from one IP version to the other, by a NAT 1:1."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from company import HttpProxy
from coturn import Coturn, why_no_coturn
from driver import HANG, RELAY_TLS, Node
from lab import Host, Lab
from meeting import Meeting
from own_relay import OwnRelay

import keynet

# messages of 16 KiB that a call must bring back
MESSAGES = 20
ACCOUNT = "jane:a pass/word@work"
QUOTED = "jane:a%20pass%2Fword%40work"


def calls(node: Node, other: Node) -> None:
    """A gRPC stream to the other node brings messages back, in order, and ends well."""
    node.ask("stream", node=other.node_id)
    come_back(node, other, MESSAGES)
    report = node.ask("finish")
    assert (report["failed"], report["same"]) == ("", True), report


def come_back(node: Node, other: Node, messages: int) -> None:
    """Waits until the stream has brought so many back."""
    deadline = time.monotonic() + HANG
    while (report := node.ask("progress"))["received"] < messages:
        assert report["failed"] == "", report
        assert time.monotonic() < deadline, f"{report}\n{node.ask('explain', node=other.node_id)['explanation']}"
        time.sleep(0.05)


def over_a_relay(node: Node, other: Node) -> None:
    """Whatever leads to the other node is relayed."""
    paths = node.peer(other.node_id)["paths"]
    assert paths
    assert all(path["relayed"] for path in paths), paths


def relays(node: Node) -> list[dict[str, Any]]:
    """Those that a node has told peers of."""
    found: list[dict[str, Any]] = node.ask("status")["status"]["relays"]
    return [relay for relay in found if relay["socket"] is not None and not relay["introduction"]]


# -- a company ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("account", [QUOTED, pytest.param("", marks=pytest.mark.matrix)], ids=["basic", "anybody"])
def test_a_node_whose_only_way_out_is_an_http_proxy_calls_and_is_called(account: str):
    lab = Lab(rtt_ms=20)
    server = lab.server("server")
    lab.host("a", "udp-blocked:tcp=dropped")
    lab.host("b", "symmetric")
    with lab:
        proxy = HttpProxy(lab.hosts["a"], credentials=ACCOUNT if account else "")
        meeting = Meeting(server, own_relay=True)
        a, b = Node(lab.hosts["a"], **proxy.environment(account)), Node(lab.hosts["b"])
        for node in (b, a):
            meeting.start(node, stream=True)
        meeting.settle(a, b)
        for caller, called in ((a, b), (b, a)):
            calls(caller, called)
            over_a_relay(caller, called)
        (relay,) = relays(a)
        assert (relay["relay"], relay["transport"]) == (server.address, "tls")
        explanation = a.ask("explain", node=b.node_id)["explanation"]
        assert f"Which relay: this node's, {server.address}, by tls through the HTTP proxy " in explanation
        assert "as no UDP passes here" in explanation
        asked = proxy.asked()
        assert (f"{server.address}:{RELAY_TLS}", 200) in asked
        assert {status for _, status in asked} <= {200, 502}, asked


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("who", ["a", "b"], ids=["inside calls", "outside calls"])
def test_a_call_survives_that_the_proxy_starts_again(who: str):
    lab = Lab(rtt_ms=20)
    server = lab.server("server")
    lab.host("a", "udp-blocked:tcp=dropped")
    lab.host("b", "symmetric")
    with lab:
        proxy = HttpProxy(lab.hosts["a"])
        meeting = Meeting(server, own_relay=True)
        a, b = Node(lab.hosts["a"], **proxy.environment()), Node(lab.hosts["b"])
        for node in (b, a):
            meeting.start(node, stream=True)
        meeting.settle(a, b)
        caller, called = (a, b) if who == "a" else (b, a)
        caller.ask("stream", node=called.node_id)
        come_back(caller, called, MESSAGES)
        proxy.kill()
        HttpProxy(lab.hosts["a"])
        # of those, the last were sent after that
        come_back(caller, called, caller.ask("progress")["sent"] + MESSAGES)
        report = caller.ask("finish")
        assert (report["failed"], report["same"]) == ("", True), report


@pytest.mark.slow
@pytest.mark.matrix
def test_doctor_in_a_company_says_how_it_gets_out():
    lab = Lab()
    server, host = lab.server("server"), lab.host("a", "udp-blocked:tcp=dropped")
    with lab:
        proxy = HttpProxy(host)
        meeting = Meeting(server, own_relay=True)
        command = ["doctor", "--no-port-mapping", "--timeout", "6", "--rendezvous", meeting.rendezvous.place()]
        doctor = host.popen(
            [sys.executable, "-m", "keynet", *command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **proxy.environment()},
        )
        said, _ = doctor.communicate(timeout=HANG)
        assert doctor.returncode == 0, said
        assert "registered over a relay" in said
        assert f"peers will be reached over the relay {server.address}, by tls." in said


# what a node has for a proxy that wants an account, and forbids even then; what the node must say of it
REFUSALS = {
    "": "407, it wants a user and a password: https_proxy=http://user:password@host:port",
    "jane:another": "407, it does not take this user and password",
    QUOTED: "403 Forbidden by the company",
}


def test_a_proxy_that_refuses_is_named_with_what_to_do():
    lab = Lab()
    server = lab.server("server")
    company = lab.nat("company", "udp-blocked:tcp=rejected")
    hosts = [lab.host(f"a{n}", behind=[company]) for n in range(len(REFUSALS))]
    with lab:
        proxy = HttpProxy(hosts[0], credentials=ACCOUNT, forbids=True)
        nodes = [Node(host, **proxy.environment(given)) for host, given in zip(hosts, REFUSALS, strict=True)]
        meeting = Meeting(server, own_relay=True)
        for node in nodes:
            meeting.start(node)
        for node in nodes:
            until_refused(node)
        somebody = keynet.Identity.generate().node_id
        dials = [node.begin("connect", node=somebody) for node in nodes]
        for node, dial, refusal in zip(nodes, dials, REFUSALS.values(), strict=True):
            answer = node.answer(dial)
            assert (answer["status"], answer["reason"]) == (502, "udp_blocked"), answer
            assert f"the HTTP proxy {proxy.place}: {refusal}" in answer["message"]
            assert "stage relay" in answer["message"]
            (advice,) = [line for line in answer["explanation"].splitlines() if line.startswith("What to do:")]
            assert "The HTTP proxy that `https_proxy` names" in advice
        assert {status for _, status in proxy.asked()} == {407, 403}


def until_refused(node: Node) -> None:
    """Waits until the node has asked for the relay of its rendezvous in vain."""
    deadline = time.monotonic() + HANG
    while not any(relay["error"] for relay in node.ask("status")["status"]["relays"]):
        assert time.monotonic() < deadline, node.ask("status")
        time.sleep(0.05)


# -- IP versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keynet", "coturn"])
@pytest.mark.parametrize("who", ["a", pytest.param("b", marks=pytest.mark.matrix)], ids=["4 calls 6", "6 calls 4"])
def test_a_node_with_ipv4_and_one_with_ipv6_meet_at_a_relay_that_has_both(kind: str, who: str):
    if kind == "coturn" and (why := why_no_coturn()):
        pytest.skip(why)
    lab = Lab(rtt_ms=20)
    server, host = lab.server("server"), lab.server("relay")
    lab.host("a", "port-restricted")
    lab.host("b", "firewall:ipv4=no,ipv6=yes")
    with lab:
        coturn = Coturn(host) if kind == "coturn" else None
        meeting = Meeting(server, relays=[coturn.uris, coturn.uris6] if coturn else [], own_relay=coturn is None)
        nodes = [Node(lab.hosts[name]) for name in "ab"]
        for node in nodes:
            meeting.start(node, stream=True)
        meeting.settle(*nodes)
        caller, called = nodes if who == "a" else reversed(nodes)
        calls(caller, called)
        over_a_relay(caller, called)


# -- clouds ------------------------------------------------------------------------------------------------------------

CLOUD = "full-cone:engine=one-to-one"


def test_a_relay_behind_a_nat_that_translates_one_to_one():
    lab = Lab(rtt_ms=20)
    server, host = lab.server("server"), lab.host("relay", CLOUD)
    for name in "ab":
        lab.host(name, "symmetric")
    with lab:
        relay = OwnRelay(host, external=host.seen_as)
        meeting = Meeting(server, relays=[relay.uris])
        meet_over(host, meeting, *(Node(lab.hosts[name]) for name in "ab"))


@pytest.mark.matrix
def test_a_rendezvous_with_a_relay_behind_a_nat_that_translates_one_to_one():
    """Who has no UDP reaches the rendezvous by its relay, although the box does not turn packets round."""
    lab = Lab(rtt_ms=20)
    host = lab.host("server", CLOUD)
    lab.host("a", "udp-blocked")
    lab.host("b", "symmetric")
    with lab:
        meet_over(host, Meeting(host, own_relay=True), *(Node(lab.hosts[name]) for name in "ab"))


def meet_over(host: Host, meeting: Meeting, a: Node, b: Node) -> None:
    """The two get addresses at a relay in this host, as the internet calls it, and meet there."""
    for node in (a, b):
        meeting.start(node, stream=True)
    meeting.settle(a, b)
    for caller, called in ((a, b), (b, a)):
        calls(caller, called)
        over_a_relay(caller, called)
    for node in (a, b):
        (relay,) = relays(node)
        assert [address.rpartition(":")[0] for address in relay["addresses"]] == [host.seen_as]


# -- one port ----------------------------------------------------------------------------------------------------------

ONLY_UDP_443 = "meta l4proto . th sport != { udp . 443 } meta l4proto . th dport != { udp . 443 }"


def test_nodes_whose_networks_let_out_udp_443_alone_call_each_other():
    lab = Lab(rtt_ms=20)
    server = lab.server("server")
    for name in "ab":
        lab.host(name, "port-restricted")
    with lab:
        # as docs/deploy.md says
        meeting = Meeting(server, own_relay=True, more_ports=[RELAY_TLS])
        a, b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
        for node in (b, a):
            node.host.cut(ONLY_UDP_443)
            meeting.start(node, stream=True)
        meeting.settle(a, b)
        calls(a, b)
        over_a_relay(a, b)
        assert {relay["transport"] for relay in relays(a)} == {"udp"}


def comes_through(host: Host, server: Host, size: int) -> bool:
    """Whether so many bytes at once arrive at a plain TCP server within two seconds."""
    with server.socket(kind=socket.SOCK_STREAM) as listener, host.socket(kind=socket.SOCK_STREAM) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((server.address, 80))
        listener.listen()
        client.settimeout(2)
        client.connect((server.address, 80))
        accepted, _ = listener.accept()
        with accepted:
            client.send(bytes(size))
            accepted.settimeout(2)
            try:
                while size > 0:
                    size -= len(accepted.recv(65_536))
            except TimeoutError:
                return False
    return True


def test_tls_to_a_relay_passes_a_tunnel_that_swallows_what_is_too_large():
    lab = Lab(rtt_ms=20)
    server = lab.server("server")
    lab.host("a", "udp-blocked")
    lab.host("b", "port-restricted")
    with lab:
        # packets as they are on a wire, and not several of them that the system carries as one
        for host, device in ((lab.hosts["a"], "eth0"), (server, "wan0")):
            host.run("ip", "link", "set", device, "gso_max_segs", "1")
        lab.hosts["a"].cut("meta length > 1280")
        assert not comes_through(lab.hosts["a"], server, 4_000), "what does not keep its segments small is lost"
        assert comes_through(lab.hosts["a"], server, 1_000)
        meeting = Meeting(server, own_relay=True)
        a, b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
        for node in (b, a):
            meeting.start(node, stream=True)
        meeting.settle(a, b)
        calls(a, b)
        over_a_relay(a, b)
        assert {relay["transport"] for relay in relays(a)} == {"tls"}


# -- from relay to relay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["symmetric", pytest.param("udp-blocked", marks=pytest.mark.matrix)])
def test_two_that_each_reach_another_relay_meet_between_the_two(kind: str):
    """Neither network lets out anything but to the rendezvous and to the relay of its own."""
    lab = Lab(rtt_ms=20)
    server = lab.server("server")
    hosts = [lab.server(f"relay-{name}") for name in "ab"]
    for name in "ab":
        lab.host(name, kind)
    with lab:
        own = [OwnRelay(host) for host in hosts]
        meeting = Meeting(server)
        nodes = [Node(lab.hosts[name]) for name in "ab"]
        for node, relay in reversed(list(zip(nodes, own, strict=True))):
            few = f"{{ {server.address}, {relay.host.address} }}"
            node.host.cut(f"ip saddr != {few} ip daddr != {few}")
            meeting.start(node, stream=True, relays=relay.static(node.host))
        meeting.settle(*nodes)
        for caller, called in (nodes, nodes[::-1]):
            calls(caller, called)
            over_a_relay(caller, called)
        for node, relay in zip(nodes, own, strict=True):
            assert [one["relay"] for one in relays(node)] == [relay.host.address]
