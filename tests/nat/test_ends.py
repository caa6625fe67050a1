"""A node ends without a word: its host says so (ICMP "port unreachable"), and streams to it do not wait for long."""

from __future__ import annotations

import time

import pytest
from driver import HANG
from lab import Lab
from test_survival import Flow, Record

# far longer than a test may take: what ends before was ended by the host's word
PATIENCE = 600.0
MORE = pytest.mark.matrix
PAIRS = [
    ("port-restricted", "port-restricted"),
    *(pytest.param(*pair, marks=MORE) for pair in (("none", "none"), ("linux-masquerade", "full-cone"))),
]


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_a_host_that_refuses_ends_the_stream(a: str, b: str, record_property: Record):
    lab = Lab(rtt_ms=20)
    lab.server("server")
    lab.host("a", a)
    lab.host("b", b)
    with lab:
        flow = Flow(lab, record_property, patience=PATIENCE)
        flow.b.kill()
        killed = time.monotonic()
        while not flow.a.ask("progress")["failed"]:
            assert time.monotonic() < killed + HANG, flow.a.ask("explain", node=flow.b.node_id)["explanation"]
            time.sleep(0.1)
        took = time.monotonic() - killed
        print(f"the stream ended {took:.1f} s after its peer was killed")
        record_property("ended after s", round(took, 1))
