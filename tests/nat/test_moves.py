"""A stream lives through a move to a worse network: without UDP, behind a NAT that cannot be foretold, or of both."""

from __future__ import annotations

import threading
import time

import pytest
from lab import Host, Lab
from meeting import Meeting
from test_survival import ROAMED, Flow, Record

# between the moves of the two
APART_SECONDS = 0.7
# without any network, as a telephone is between two
GAP_SECONDS = 0.5

MORE = pytest.mark.matrix


def make(a: list[str], b: list[str]) -> Lab:
    """The networks that each of the two goes through."""
    lab = Lab(rtt_ms=40)
    lab.server("server")
    for name, kinds in (("a", a), ("b", b)):
        lab.host(name, behind=[lab.nat(f"{name}{n}", kind) for n, kind in enumerate(kinds)])
    return lab


def move(host: Host) -> None:
    """From the first network to the second, with nothing in between."""
    host.run("ip", "link", "set", "eth0", "down")
    time.sleep(GAP_SECONDS)
    host.use_uplink(1)


def move_both(lab: Lab) -> None:
    """One after the other, before either has found the other again."""
    thread = threading.Thread(target=move, args=(lab.hosts["a"],))
    thread.start()
    time.sleep(APART_SECONDS)
    move(lab.hosts["b"])
    thread.join()


WORSE = ["udp-blocked", pytest.param("symmetric", marks=MORE), pytest.param("port-restricted", marks=MORE)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORSE)
@pytest.mark.parametrize("who", ["a", pytest.param("b", marks=MORE)])
def test_one_moves(who: str, kind: str, record_property: Record):
    networks = {"a": ["port-restricted"], "b": ["port-restricted"]}
    networks[who].append(kind)
    lab = make(networks["a"], networks["b"])
    with lab:
        flow = Flow(lab, record_property, Meeting(lab.hosts["server"], own_relay=True))
        flow.survives(f"{ROAMED} to {kind}", lambda: move(lab.hosts[who]))
        flow.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("a", "b"),
    [("symmetric", "port-restricted"), pytest.param("port-restricted", "port-restricted", marks=MORE)],
)
def test_both_move(a: str, b: str, record_property: Record):
    lab = make(["port-restricted", a], ["port-restricted", b])
    with lab:
        flow = Flow(lab, record_property, Meeting(lab.hosts["server"], own_relay=True))
        flow.survives(f"both {ROAMED} to {a} and {b}", lambda: move_both(lab))
        flow.ends_well()
