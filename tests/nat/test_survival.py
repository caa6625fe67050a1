"""A gRPC stream at full rate lives through what happens to paths: no error, nothing lost, nothing twice, all in order.

How long nothing arrived is no matter of pass or fail; it is reported (`pytest -rP`, and as a property in junit.xml).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from driver import HANG, Node
from lab import Host, Lab
from meeting import Meeting

# messages of 16 KiB that say that a stream flows, and no buffer empties
FLOWING = 50
# how long a path stays dead: longer than a few round trips, shorter than what a node is given up after
DEAD_SECONDS = 5.0
# long enough to give a path up while another one stands, and short beside the test
GIVEN_UP_SECONDS = 12.0
# as mobile networks and tunnels have
MOBILE_MTU = 1400
PATH_LOST, REBOUND, ROAMED, NEW_ADDRESS = "path lost", "NAT rebound", "roamed", "new public address"

Record = Callable[[str, object], None]


class Flow:
    """A stream between two nodes of a laboratory, under observation."""

    def __init__(self, lab: Lab, record: Record, meeting: Meeting | None = None, **options: Any) -> None:
        self.lab, self._record = lab, record
        self.meeting = meeting or Meeting(lab.hosts["server"])
        self.a, self.b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
        self.meeting.start(self.b, stream=True, **options)
        self.meeting.start(self.a, **options)
        self.meeting.settle(self.a, self.b)
        self.a.ask("stream", node=self.b.node_id)
        self.flows()

    @property
    def path(self) -> str:
        """The address by which the dialler reaches the other node now."""
        return str(self.a.ask("path", node=self.b.node_id)["path"])

    def flows(self) -> dict[str, Any]:
        """Waits until messages that were sent after this call have come back."""
        report = self.a.ask("progress")
        target, gap = report["sent"] + FLOWING, report["gap_ms"]
        deadline = time.monotonic() + HANG
        while True:
            report = self.a.ask("progress")
            gap = max(gap, report["gap_ms"])
            assert report["failed"] == "", self.story()
            if report["received"] >= target:
                return {**report, "gap_ms": gap}
            assert time.monotonic() < deadline, f"it stands still: {report}\n{self.story()}"
            time.sleep(0.05)

    def survives(self, what: str, happens: Callable[[], None]) -> None:
        """Does something to the path while the stream flows, and waits until it flows again."""
        self.flows()
        before, began = self.path, time.monotonic()
        happens()
        report = self.flows()
        took, after = time.monotonic() - began, self.path
        moved = f"; {before} -> {after}" if before != after else ""
        print(f"{what}: nothing arrived for {report['gap_ms']:.0f} ms; flowed again after {took:.1f} s{moved}")
        self._record(f"{what}: gap in ms", round(report["gap_ms"]))

    def ends_well(self) -> None:
        """Ends the stream: all of it came back, as it was."""
        report = self.a.ask("finish")
        assert report["failed"] == "", self.story()
        assert report["received"] == report["sent"]
        assert report["same"]
        events = [event["event"] for event in self.a.ask("events")["events"]]
        print(f"{report['received']} messages, {report['bytes'] / 1e6:.0f} MB each way; {', '.join(events)}")

    def story(self) -> str:
        """What the nodes say of it."""
        words = []
        for node, other in ((self.a, self.b), (self.b, self.a)):
            words += [f"--- {node.host.name}", node.ask("explain", node=other.node_id)["explanation"]]
            words += [str(event) for event in node.ask("events")["events"]]
        return "\n".join(words)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Lab:
    lab = Lab(rtt_ms=getattr(request, "param", 20))
    lab.server("server")
    return lab


def cut(host: Host, seconds: float = DEAD_SECONDS, what: str = "") -> None:
    """The path of a host, or what it carries of some kind, dies in silence, and comes back."""
    host.cut(what)
    time.sleep(seconds)
    host.mend()


def of_the_path(flow: Flow) -> str:
    """The packets of the path in use, by their IP version."""
    return "meta nfproto ipv6" if flow.path.startswith("[2001:") else "meta nfproto ipv4"


# whom it happens to. `make test` has time for one of each kind of test; the others are run with the matrix
DIALLER, ACCEPTOR = pytest.param("a", id="dialler"), pytest.param("b", id="acceptor", marks=pytest.mark.matrix)
WHO = pytest.mark.parametrize("who", [DIALLER, ACCEPTOR])


@pytest.mark.matrix
@WHO
def test_what_happens_to_the_path_of_one(who: str, lab: Lab, record_property: Record):
    for name in "ab":
        lab.host(name, "port-restricted" if name == who else "none")
    nat = lab.hosts[who].nat
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(REBOUND, nat.forget)
        flow.survives(NEW_ADDRESS, lambda: nat.set_address("198.51.100.200"))
        flow.ends_well()


OUTAGES = [
    pytest.param(20.0, id="20s", marks=pytest.mark.slow),
    pytest.param(60.0, id="60s", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize("seconds", OUTAGES)
@WHO
def test_an_outage(seconds: float, who: str, lab: Lab, record_property: Record):
    """Nothing passes for far longer than a peer takes to be reported as lost."""
    for name in "ab":
        lab.host(name, "port-restricted")
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(f"outage of {seconds:.0f} s", lambda: cut(lab.hosts[who], seconds))
        # whoever asks for events gets each once
        assert "PeerLost" in [event["event"] for event in flow.a.ask("events")["events"]], flow.story()
        flow.ends_well()


@pytest.mark.matrix
@pytest.mark.parametrize("who", ["a", "b", "ab"])
def test_stopped_processes(who: str, lab: Lab, record_property: Record):
    """One node, or both, get no CPU for a minute."""
    for name in "ab":
        lab.host(name, "port-restricted")
    with lab:
        flow = Flow(lab, record_property)
        nodes = [getattr(flow, name) for name in who]

        def stop() -> None:
            for node in nodes:
                node.stop()
            time.sleep(60.0)
            for node in nodes:
                node.go_on()

        flow.survives(f"{who} stopped for 60 s", stop)
        flow.ends_well()


@pytest.mark.slow
@WHO
def test_roaming(who: str, lab: Lab, record_property: Record):
    """Between networks, with the other node behind a NAT that lets nobody in unasked."""
    wifi, mobile = lab.nat("wifi", "port-restricted"), lab.nat("mobile", "full-cone")
    lab.host(who, behind=[wifi, mobile])
    lab.host("b" if who == "a" else "a", "port-restricted")
    host = lab.hosts[who]
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(ROAMED, lambda: host.use_uplink(1))
        flow.survives(f"{ROAMED} back", lambda: host.use_uplink(0))
        flow.ends_well()


@pytest.mark.matrix
def test_roaming_to_a_smaller_mtu(lab: Lab, record_property: Record):
    """What was cut for the larger packets of the old network must get through the new one as well: in IP fragments, for
    in uTP it cannot be made smaller."""
    wifi, mobile = lab.nat("wifi", "port-restricted"), lab.nat("mobile", "full-cone")
    lab.host("a", behind=[wifi, mobile])
    lab.host("b", "port-restricted")
    host = lab.hosts["a"]
    with lab:
        mobile.set_mtu(MOBILE_MTU)
        host.run("ip", "link", "set", "eth1", "mtu", str(MOBILE_MTU))
        flow = Flow(lab, record_property)
        flow.survives(f"{ROAMED} to {MOBILE_MTU} bytes", lambda: host.use_uplink(1))
        says_what_gets_through(flow)
        flow.ends_well()


def says_what_gets_through(flow: Flow) -> None:
    """Waits until the search for the MTU of the path has ended, and `explain` says so."""
    deadline = time.monotonic() + HANG
    while "get through, of" not in flow.story():
        assert time.monotonic() < deadline, flow.story()
        flow.flows()


ALWAYS = pytest.param("port-restricted", "port-restricted", 20)
SOMETIMES = [
    ("port-restricted", "port-restricted", 40),
    *((a, b, rtt) for a, b in (("symmetric", "full-cone"), ("full-cone", "symmetric")) for rtt in (20, 40)),
]
PAIRS = [ALWAYS, *(pytest.param(*pair, marks=pytest.mark.matrix) for pair in SOMETIMES)]


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b", "lab"), PAIRS, indirect=["lab"])
def test_other_mappings(a: str, b: str, lab: Lab, record_property: Record):
    """Between NATs that filter, only a rendezvous can tell the new address."""
    one, other = lab.host("a", a), lab.host("b", b)
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(f"{REBOUND}, dialler's", one.nat.forget)
        flow.survives(f"{REBOUND}, acceptor's", other.nat.forget)
        flow.survives(f"{NEW_ADDRESS}, dialler's", lambda: one.nat.set_address("198.51.100.200"))
        flow.survives(f"{NEW_ADDRESS}, acceptor's", lambda: other.nat.set_address("198.51.100.201"))
        flow.ends_well()


# the first meeting has just made a path, and its time is not over
SOON_AFTER_SECONDS = 1.0


# with the long ones: a signal lost on the way to the rendezvous, whose path has gone as well, may cost the call
@pytest.mark.matrix
def test_a_second_rebinding_soon_after_the_first(lab: Lab, record_property: Record):
    """While the nodes are still busy with the first."""
    one, other = lab.host("a", "port-restricted"), lab.host("b", "port-restricted")

    def forget_both() -> None:
        one.nat.forget()
        time.sleep(SOON_AFTER_SECONDS)
        other.nat.forget()

    with lab:
        flow = Flow(lab, record_property)
        flow.survives(f"{REBOUND}, then the other", forget_both)
        flow.ends_well()


@pytest.mark.matrix
@pytest.mark.parametrize(("a", "b", "lab"), PAIRS, indirect=["lab"])
def test_without_rendezvous(a: str, b: str, lab: Lab, record_property: Record):
    """A path that stands needs none, one that comes back neither; and one that has come back is of use again."""
    one, other = lab.host("a", a), lab.host("b", b)
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(PATH_LOST, lambda: cut(one))
        rendezvous = flow.meeting.rendezvous
        flow.survives("rendezvous killed", rendezvous.kill)
        flow.survives(f"{PATH_LOST}, without rendezvous", lambda: cut(other))
        flow.survives("rendezvous started again", rendezvous.start)
        flow.meeting.settle(flow.a, flow.b, again=True)
        flow.survives(f"{REBOUND}, dialler's", one.nat.forget)
        flow.ends_well()


BOTH_FAMILIES = "port-restricted:ipv6=yes"


@pytest.mark.matrix
@WHO
def test_two_paths(who: str, lab: Lab, record_property: Record):
    """The one in use dies, and the stream goes on over the other; then that one dies, and the first has come back."""
    for name in "ab":
        lab.host(name, BOTH_FAMILIES)
    host = lab.hosts[who]
    with lab:
        flow = Flow(lab, record_property)
        first = of_the_path(flow)
        flow.survives(f"{PATH_LOST}, {first}", lambda: cut(host, GIVEN_UP_SECONDS, first))
        time.sleep(DEAD_SECONDS)
        second = of_the_path(flow)
        flow.survives(f"{PATH_LOST}, {second}", lambda: cut(host, GIVEN_UP_SECONDS, second))
        flow.ends_well()


@pytest.mark.slow
@WHO
def test_a_black_hole_for_large_packets(who: str, lab: Lab, record_property: Record):
    """Pings and acknowledgements pass, what carries data does not: the other path does."""
    for name in "ab":
        lab.host(name, BOTH_FAMILIES)
    with lab:
        flow = Flow(lab, record_property)
        what = f"{of_the_path(flow)} meta length > 1000"
        flow.survives(f"black hole, {what}", lambda: lab.hosts[who].cut(what))
        flow.ends_well()
