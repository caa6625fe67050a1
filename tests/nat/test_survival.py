"""A gRPC stream at full rate lives through what happens to paths: no error, nothing lost, nothing twice, all in order.

How long nothing arrived is no matter of pass or fail; it is reported (`pytest -rP`, and as a property in junit.xml).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from driver import HANG, Node
from lab import Lab
from meeting import AtRendezvous, meet

# messages of 16 KiB that say that a stream flows, and no buffer empties
FLOWING = 50
# how long a path stays dead: longer than a few round trips, shorter than what a node is given up after
DEAD_SECONDS = 5.0
PATH_LOST, REBOUND, ROAMED, NEW_ADDRESS = "path lost", "NAT rebound", "roamed", "new public address"


class Flow:
    """A stream between two nodes of a laboratory, under observation."""

    def __init__(self, lab: Lab, record: Callable[[str, object], None]) -> None:
        self.lab, self._record = lab, record
        self.meeting = meet(lab.hosts["server"])
        self.a, self.b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
        self.meeting.start(self.b, stream=True)
        self.meeting.start(self.a)
        self.meeting.introduce(self.a, self.b)
        self.a.ask("stream", node=self.b.node_id)
        self.flows()

    def flows(self) -> dict[str, Any]:
        """Waits until messages that were sent after this call have come back."""
        target = self.a.ask("progress")["sent"] + FLOWING
        deadline, gap = time.monotonic() + HANG, 0.0
        while True:
            report = self.a.ask("progress")
            gap = max(gap, report["gap_ms"])
            assert report["failed"] == ""
            if report["received"] >= target:
                return {**report, "gap_ms": gap}
            assert time.monotonic() < deadline, f"it stands still: {report}, {self.events()}"
            time.sleep(0.05)

    def survives(self, what: str, happens: Callable[[], None]) -> None:
        """Does something to the path while the stream flows, and waits until it flows again."""
        self.a.ask("progress")
        began = time.monotonic()
        happens()
        report = self.flows()
        took = time.monotonic() - began
        print(f"{what}: nothing arrived for {report['gap_ms']:.0f} ms; flowed again after {took:.1f} s")
        self._record(f"{what}: gap in ms", round(report["gap_ms"]))

    def ends_well(self) -> None:
        """Ends the stream: all of it came back, as it was."""
        report = self.a.ask("finish")
        assert report["failed"] == ""
        assert report["received"] == report["sent"]
        assert report["same"]
        print(f"{report['received']} messages, {report['bytes'] / 1e6:.0f} MB each way; {self.events()}")

    def events(self) -> list[str]:
        """What the dialling node has reported."""
        return [event["event"] for event in self.a.ask("events")["events"]]


@pytest.fixture
def lab() -> Lab:
    lab = Lab(rtt_ms=20)
    lab.server("server")
    return lab


def cut(flow: Flow, host: str) -> None:
    """The path of a host dies in silence, and comes back."""
    flow.lab.hosts[host].cut()
    time.sleep(DEAD_SECONDS)
    flow.lab.hosts[host].mend()


# who dials is behind the box that things happen to; then the other one is
WHO = pytest.mark.parametrize("who", ["a", "b"], ids=["dialler", "acceptor"])


@pytest.mark.slow
@WHO
def test_what_happens_to_the_path_of_one(who: str, lab: Lab, record_property: Callable[[str, object], None]):
    for name in "ab":
        lab.host(name, "port-restricted" if name == who else "none")
    nat = lab.hosts[who].nat
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(REBOUND, nat.forget)
        flow.survives(NEW_ADDRESS, lambda: nat.set_address("198.51.100.200"))
        flow.ends_well()


@pytest.mark.slow
@WHO
def test_roaming(who: str, lab: Lab, record_property: Callable[[str, object], None]):
    wifi, mobile = lab.nat("wifi", "port-restricted"), lab.nat("mobile", "full-cone")
    lab.host(who, behind=[wifi, mobile])
    lab.host("b" if who == "a" else "a")
    host = lab.hosts[who]
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(ROAMED, lambda: host.use_uplink(1))
        flow.survives(f"{ROAMED} back", lambda: host.use_uplink(0))
        flow.ends_well()


@pytest.mark.slow
def test_what_happens_with_both_behind_nats(lab: Lab, record_property: Callable[[str, object], None]):
    lab.host("a", "port-restricted")
    lab.host("b", "linux-masquerade")
    with lab:
        flow = Flow(lab, record_property)
        flow.survives(PATH_LOST, lambda: cut(flow, "a"))
        # between NATs that filter, only a rendezvous can tell the new address
        if isinstance(flow.meeting, AtRendezvous):
            flow.survives(REBOUND, lab.hosts["a"].nat.forget)
            flow.survives("rendezvous dead", flow.meeting.rendezvous.kill)
            flow.survives(f"{PATH_LOST} again", lambda: cut(flow, "a"))
        flow.ends_well()
