"""What a node sends over relays, counted where it passes, stays below its limit; direct paths have none."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from driver import HANG, Node
from lab import Lab
from lab.nodes import Counter
from meeting import Meeting
from own_relay import OwnRelay

# bytes a second, and as many at once (rust/src/net/police.rs)
LIMIT = 50_000
# long beside the burst of a second
SECONDS = 2.0
# over a path with the limit it would take twice the time in which a test gives up
MUCH = int(2 * HANG * LIMIT)
# IPv4 and UDP, and ChannelData (RFC 8656 section 12.4)
HEADERS = 20 + 8 + 4
# pings and what keeps the relay: some hundred bytes a second, of which the limit takes no notice
SLACK = 1.1


def flows(node: Node, to: Node, much: int) -> None:
    """Waits until so many bytes have come back."""
    deadline = time.monotonic() + HANG
    while (report := node.ask("progress"))["bytes"] < much:
        assert report["failed"] == "", report
        assert time.monotonic() < deadline, f"{report}\n{node.ask('explain', node=to.node_id)['explanation']}"
        time.sleep(0.05)


def dropped(node: Node) -> int:
    """Datagrams that the limit has cost a node."""
    return int(node.ask("stats")["stats"]["dropped_relay_limit"])


def payload(counter: Counter, way: int) -> int:
    """Bytes of uTP and pings, in one direction (0: there, 1: back)."""
    packets, size = counter.read()[way]
    return size - packets * HEADERS


# `make test` has time for one of them
PER_PEER = pytest.param("relay_bytes_per_second_per_peer", marks=pytest.mark.matrix)


@pytest.mark.parametrize("key", ["relay_bytes_per_second", PER_PEER])
def test_no_more_goes_over_relays_than_the_limit_allows(key: str):
    lab = Lab()
    server, relay = lab.server("server"), lab.server("relay")
    for name in "abc":
        lab.host(name, "symmetric")
    lab.host("public")
    with lab:
        meeting = Meeting(server, relays=[OwnRelay(relay).uris])
        a, b, c, public = (Node(lab.hosts[name]) for name in ("a", "b", "c", "public"))
        meeting.start(a, stream=True, limits={key: LIMIT})
        for node in (b, c, public):
            meeting.start(node)
        meeting.settle(a, b, c, public)
        # what they send comes back, and is what the node sends
        public.ask("stream", node=a.node_id)
        flows(public, a, MUCH)
        public.ask("finish")
        assert dropped(a) == 0
        for node in (b, c):
            node.ask("stream", node=a.node_id)
        for node in (b, c):
            flows(node, a, 1)
        if key.endswith("per_peer"):
            counters = [relay.count(lab.hosts[name]) for name in "bc"]
            read: list[Callable[[], int]] = [lambda counter=counter: payload(counter, 0) for counter in counters]
        else:
            counter = lab.hosts["a"].count(relay)
            read = [lambda: payload(counter, 0)]
        began, before = time.monotonic(), [one() for one in read]
        time.sleep(SECONDS)
        sent = [one() - start for one, start in zip(read, before, strict=True)]
        took = time.monotonic() - began
        print(f"{sent} bytes in {took:.2f} s; {dropped(a)} datagrams were dropped")
        assert all(0 < bytes_sent <= SLACK * LIMIT * (1 + took) for bytes_sent in sent), sent
        assert dropped(a) > 0
