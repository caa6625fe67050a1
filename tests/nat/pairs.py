"""Pairs of nodes behind NATs: what must come of a dial, and what does."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from coturn import Coturn
from driver import Failed, Node
from lab import KINDS, Host, Lab, boxes, seen, stop_all
from meeting import Meeting

# laboratories at a time: a pair mostly waits, and two processors have time for more than two of them
WORKERS = 4
# a search among random ports has this long, and may miss now and then: by the arithmetic of birthdays it finds 98.4 of
# a hundred with 256 sockets and 1024 probes
SEARCH_SECONDS, SEARCHES_MISSED = 15, 0.05

# a search, and a second one some seconds after it
UPGRADE_SECONDS = 45.0

Where = Literal["apart", "one LAN", "one carrier"]
Relay = Literal["", "coturn", "keynet"]


@dataclass(frozen=True)
class Case:
    """A dials B by its node id."""

    a: str
    b: str
    rtt_ms: int = 0
    where: Where = "apart"

    def __str__(self) -> str:
        kinds = f"{self.a} x {self.b}" if self.where == "apart" else f"{self.where}, {self.a}"
        return f"{kinds}, {self.rtt_ms} ms"


@dataclass(frozen=True)
class Expected:
    """What must come of it. `outcome`: "direct", or the reason why not, or nothing in particular."""

    outcome: str | None
    how: Literal["plainly", "by prediction", "by search", ""] = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one dial. `first`: the kind of path at the time of the answer, where there is a relay."""

    outcome: str
    ms: float = 0.0
    first: str = ""
    path: str = ""
    detail: str = ""


@dataclass
class Result:
    """All dials of a case."""

    case: Case
    expected: Expected
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def misses(self) -> list[Outcome]:
        """The dials that went otherwise than they must."""
        if self.expected.outcome is None:
            return [outcome for outcome in self.outcomes if outcome.outcome == "failed"]
        return [outcome for outcome in self.outcomes if outcome.outcome != self.expected.outcome]


def with_relay(case: Case) -> Expected:
    """The same where both nodes have a relay: every pair meets, and directly where that is possible."""
    alone = expected(case)
    if alone.outcome is None:
        return alone
    return alone if alone.outcome == "direct" else Expected("relayed")


def expected(case: Case) -> Expected:
    """By the classes of RFC 4787 alone."""
    if case.where == "one LAN":
        return Expected("direct", "plainly")
    if case.where == "one carrier":
        # two homes behind a carrier's box that does not turn packets round: there is no direct path
        return Expected("direct", "plainly") if boxes(case.a)[-1].hairpin else Expected("punch_timeout")
    a, b = seen(case.a), seen(case.b)
    if not a.udp:
        return Expected("udp_blocked")
    if not b.udp:
        return Expected("peer_offline")
    if all(any(box.ipv6 for box in boxes(kind)) for kind in (case.a, case.b)):
        return Expected("direct", "plainly")
    # best effort: a packet that comes too early moves its mapping
    open_input = any(box.open_input for kind in (case.a, case.b) for box in boxes(kind))
    fixed = [side for side in (a, b) if side.mapping == "endpoint-independent"]
    changing = [side for side in (a, b) if side not in fixed]
    if len(changing) == 2:
        sequential = all(side.ports == "sequential" for side in changing)
        return Expected("direct", "by prediction") if sequential else Expected("both_symmetric")
    if open_input:
        return Expected(None)
    if not changing or fixed[0].filtering != "address-and-port-dependent":
        return Expected("direct", "plainly")
    return Expected("direct", "by prediction" if changing[0].ports == "sequential" else "by search")


# -- the cases -------------------------------------------------------------------------------------------------------

IPV6 = [
    Case("firewall:ipv4=no,ipv6=yes", "firewall:ipv4=no,ipv6=yes"),
    Case("symmetric:ipv6=yes", "symmetric:ipv6=yes"),
    Case("port-restricted:ipv6=yes", "firewall:ipv6=yes", 40),
]
TOGETHER = [
    *(Case(kind, kind, where="one LAN") for kind in ("full-cone", "port-restricted", "symmetric", "linux-masquerade")),
    Case("port-restricted:hairpin=yes", "port-restricted:hairpin=yes", where="one LAN"),
    Case("full-cone:hairpin=yes", "full-cone:hairpin=yes", where="one carrier"),
    Case("full-cone", "full-cone", where="one carrier"),
]
# one of each way, and of each NAT that people have
REPRESENTATIVE = [
    Case("none", "linux-masquerade"),
    Case("symmetric", "full-cone", 40),
    Case("address-restricted", "symmetric"),
    Case("port-restricted", "port-restricted", 40),
    Case("linux-masquerade", "cgnat"),
    Case("firewall", "port-restricted"),
    Case("linux-masquerade", "symmetric-seq"),
    Case("symmetric", "port-restricted", 40),
    Case("port-restricted", "symmetric"),
    Case("symmetric-seq", "symmetric-seq"),
    Case("symmetric", "symmetric"),
    Case("udp-blocked", "none"),
    Case("none", "udp-blocked"),
    Case("port-restricted", "port-restricted", where="one LAN"),
    IPV6[0],
]


def every(kinds: Iterable[str] = KINDS) -> list[Case]:
    """The whole matrix: who dials matters, so both ways round."""
    kinds = list(kinds)
    return [*(Case(a, b, rtt_ms) for a in kinds for b in kinds for rtt_ms in (0, 40)), *TOGETHER, *IPV6]


# -- running them ----------------------------------------------------------------------------------------------------


def run_all(cases: list[Case], runs: int, *, settled: bool = True, relay: Relay = "") -> Iterator[Result]:
    """Runs the cases, several at a time; gives each as it ends."""
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        try:
            for done in concurrent.futures.as_completed(
                [pool.submit(run, case, runs, settled, relay) for case in cases]
            ):
                yield done.result()
        except BaseException:
            # whoever interrupts does not wait for the rest
            pool.shutdown(wait=False, cancel_futures=True)
            stop_all()
            raise


def run(case: Case, runs: int, settled: bool = True, relay: Relay = "") -> Result:
    """Dials several times, each time with new nodes behind boxes that have forgotten the last ones.

    `settled`: the dialler is registered and knows its NAT by then; otherwise it dials as soon as it has started.
    `relay`: there is one, beside the rendezvous ("keynet") or on a host of its own ("coturn").
    """
    result = Result(case, with_relay(case) if relay else expected(case))
    lab = Lab(rtt_ms=case.rtt_ms)
    server = lab.server("server")
    other_server = lab.server("relay") if relay == "coturn" else None
    a, b = _hosts(lab, case)
    with lab:
        coturn = Coturn(other_server) if other_server else None
        meeting = Meeting(server, relays=[coturn.uris] if coturn else [], own_relay=relay == "keynet")
        dialler, other = Node(a), Node(b)
        for _ in range(runs):
            result.outcomes.append(_dial(meeting, dialler, other, settled, coturn, result.expected))
            for nat in lab.nats.values():
                nat.forget()
    return result


def _hosts(lab: Lab, case: Case) -> tuple[Host, Host]:
    if case.where == "apart":
        return lab.host("a", case.a), lab.host("b", case.b)
    shared = lab.nat("shared", case.a)
    if case.where == "one LAN":
        return lab.host("a", behind=[shared]), lab.host("b", behind=[shared])
    homes = [lab.nat(f"home-{name}", "linux-masquerade", outer=shared) for name in "ab"]
    return lab.host("a", behind=[homes[0]]), lab.host("b", behind=[homes[1]])


def _dial(
    meeting: Meeting, dialler: Node, other: Node, settled: bool, coturn: Coturn | None, wanted: Expected
) -> Outcome:
    limits = {"dial_timeout": SEARCH_SECONDS}
    # who has no UDP reaches its rendezvous through a relay that it was told of
    told = {node: {"relays": coturn.static(node.host)} if coturn else {} for node in (dialler, other)}
    try:
        meeting.start(other, limits=limits, **told[other])
        meeting.settle(other)
        meeting.start(dialler, limits=limits, **told[dialler])
        if settled:
            meeting.settle(dialler)
        answer = dialler.ask("connect", node=other.node_id)
        if answer["status"] != 200:
            return Outcome(answer["reason"] or answer["answer"], answer["ms"], detail=answer.get("message", ""))
        if not answer["echoed"]:
            return Outcome("the payload did not come back", answer["ms"])
        if not (coturn or meeting.has_relay):
            return Outcome("direct", answer["ms"], path=answer["path"] or "")
        first = _kind(dialler, other)
        deadline = time.monotonic() + UPGRADE_SECONDS
        while wanted.outcome == "direct" and _kind(dialler, other) != "direct" and time.monotonic() < deadline:
            time.sleep(0.1)
        return Outcome(_kind(dialler, other), answer["ms"], first, answer["path"] or "")
    except Failed as failed:
        return Outcome("failed", detail=str(failed))
    finally:
        for node in (dialler, other):
            with contextlib.suppress(Failed):
                node.ask("close")


def _kind(dialler: Node, other: Node) -> str:
    used = [path for path in dialler.peer(other.node_id)["paths"] if path["in_use"]]
    return "relayed" if any(path["relayed"] for path in used) else "direct" if used else "none"


def missed_searches(results: Iterable[Result]) -> tuple[int, int]:
    """How many searches found nothing, and how many may have: at least one, so that a few dials can be judged too."""
    searched = [result for result in results if result.expected.how == "by search"]
    missed = sum(len(result.misses) for result in searched)
    return missed, max(1, int(SEARCHES_MISSED * sum(len(result.outcomes) for result in searched)))
