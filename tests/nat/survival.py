"""What survives what: events, by the kind of network that they happen to. `python tests/nat/survival.py --help`

python tests/nat/survival.py --seconds 240 --write       # into the document; goes on where it stopped the last time
python tests/nat/survival.py --events "outage 9 s" --kinds none --again
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matrix
from driver import HANG, RELAY_TLS, Failed, Node
from lab import Host, Lab, end_on_sigterm, why_not
from meeting import Meeting
from own_relay import OwnRelay

RESULTS = Path(__file__).resolve().parents[2] / "target" / "nat-survival.jsonl"
RTT_MS = 40
# a message of 16 KiB so often: a gap is known as exactly, and several cells leave two processors time enough
EVERY_SECONDS = 0.01
# messages after an event that say that the stream flows again
FLOWING = 20
# without any network, as a telephone is between two
HANDOVER_SECONDS = 0.5
# both networks are there
OVERLAP_SECONDS = 2.0
# a program that ends, until it is started again
AWAY_SECONDS = 1.0
AT_ONCE = 4

KINDS = {
    "none": ("none", "none"),
    "port-restricted": ("port-restricted", "port-restricted"),
    "symmetric, relayed": ("symmetric", "symmetric"),
    "UDP blocked": ("udp-blocked", "port-restricted"),
}
"""What is in front of the caller, and of the called."""


class Case:
    """Two nodes with a call between them. The caller's host `a` has a second network, if `moves_to` names one."""

    def __init__(self, kind: str, moves_to: str, *, relay_apart: bool) -> None:
        caller, called = KINDS[kind]
        self.lab = Lab(rtt_ms=RTT_MS)
        self.lab.server("server")
        if relay_apart:
            self.lab.server("relay")
        if moves_to:
            kinds = [caller, moves_to if moves_to != SAME else caller]
            self.lab.host("a", behind=[self.lab.nat(f"a{n}", one) for n, one in enumerate(kinds)])
        else:
            self.lab.host("a", caller)
        self.lab.host("b", called)
        self._relay_apart = relay_apart
        self._directory = tempfile.TemporaryDirectory()
        self.relay: OwnRelay | None = None

    def start(self) -> None:
        """Everything, and the call."""
        self.relay = self._new_relay() if self._relay_apart else None
        named = [self.relay.uris] if self.relay else []
        self.meeting = Meeting(self.lab.hosts["server"], relays=named, own_relay=not named, more_ports=[RELAY_TLS])
        self.a, self.b = Node(self.host), Node(self.lab.hosts["b"])
        self._start_b()
        self.meeting.start(self.a)
        self.meeting.settle(self.a, self.b)
        self.a.ask("stream", node=self.b.node_id, pause=EVERY_SECONDS)

    def _start_b(self) -> None:
        self.meeting.start(self.b, stream=True, identity=f"{self._directory.name}/b.pem")

    def _new_relay(self) -> OwnRelay:
        return OwnRelay(self.lab.hosts["relay"])

    @property
    def host(self) -> Host:
        """Of the caller, to whom it happens."""
        return self.lab.hosts["a"]

    # -- events ------------------------------------------------------------------------------------------------------

    def outage(self, seconds: float) -> None:
        """Nothing passes, and nobody is told."""
        self.host.cut()
        time.sleep(seconds)
        self.host.mend()

    def stopped(self, seconds: float) -> None:
        """The caller's node gets no CPU."""
        self.a.stop()
        time.sleep(seconds)
        self.a.go_on()

    def forgets(self) -> None:
        """The NAT starts anew."""
        self.host.nat.forget()

    def gets_address(self) -> None:
        """The NAT's own address changes."""
        self.host.nat.set_address("198.51.100.200")

    def make_before_break(self) -> None:
        """To another network, while the first one is still there for a moment."""
        self.host.run("ip", "link", "set", "eth1", "up")
        for line in self.lab.uplink_routes(self.host, 1):
            self.host.run("ip", *line.split())
        time.sleep(OVERLAP_SECONDS)
        self.host.run("ip", "link", "set", "eth0", "down")

    def hard_switch(self) -> None:
        """To another network, when the first one goes."""
        self.host.use_uplink(1)

    def break_before_make(self) -> None:
        """To another network, when the first one has gone."""
        self.host.run("ip", "link", "set", "eth0", "down")
        time.sleep(HANDOVER_SECONDS)
        self.host.use_uplink(1)

    def rendezvous_restarts(self) -> None:
        """Killed, and started again."""
        self.meeting.rendezvous.kill()
        time.sleep(AWAY_SECONDS)
        self.meeting.rendezvous.start()

    def relay_restarts(self) -> None:
        """Killed, and started again at the same place."""
        assert self.relay
        self.relay.kill()
        time.sleep(AWAY_SECONDS)
        self.relay = self._new_relay()

    def peer_restarts(self) -> None:
        """The called node is killed, and starts again with the same identity."""
        self.b.kill()
        time.sleep(AWAY_SECONDS)
        self.b = Node(self.lab.hosts["b"])
        self._start_b()
        self.meeting.settle(self.b)


@dataclass(frozen=True)
class Event:
    """What happens, how long it lasts by itself, and what it needs."""

    happens: Callable[[Case], None]
    lasts: float = 0.0
    """In seconds, for which nothing can come."""
    moves_to: str = ""
    kinds: Sequence[str] = tuple(KINDS)
    """To which it can happen in the laboratory."""
    relay_apart: bool = False
    ends_calls: bool = False
    """The call cannot live: what counts is how soon another works."""


SAME = "the same kind"
LTE = "symmetric"
BEHIND_NAT = [kind for kind in KINDS if kind != "none"]
EVENTS = {
    "outage 9 s": Event(lambda case: case.outage(9), 9),
    "outage 20 s": Event(lambda case: case.outage(20), 20),
    "outage 60 s": Event(lambda case: case.outage(60), 60),
    "SIGSTOP 60 s": Event(lambda case: case.stopped(60), 60),
    "rebinding": Event(Case.forgets, kinds=BEHIND_NAT),
    "address change": Event(Case.gets_address, kinds=BEHIND_NAT),
    "make before break": Event(Case.make_before_break, moves_to=SAME, kinds=BEHIND_NAT),
    "hard switch": Event(Case.hard_switch, moves_to=SAME, kinds=BEHIND_NAT),
    "Wi-Fi to LTE": Event(Case.break_before_make, HANDOVER_SECONDS, LTE, BEHIND_NAT),
    "to TCP 443 only": Event(Case.break_before_make, HANDOVER_SECONDS, "udp-blocked", BEHIND_NAT),
    "rendezvous restart": Event(Case.rendezvous_restarts),
    # without UDP the way to the rendezvous is the relay beside it
    "relay restart": Event(Case.relay_restarts, kinds=list(KINDS)[:3], relay_apart=True),
    "peer restart": Event(Case.peer_restarts, ends_calls=True),
}


@dataclass(frozen=True)
class Outcome:
    """What came of an event."""

    event: str
    kind: str
    errors: int
    """Calls that failed."""
    gap: float | None
    """Seconds without a message, without what the event lasts by itself; None: it never flowed again."""
    detail: str
    when: str
    """The day."""


def run(event: str, kind: str) -> Outcome:
    """One cell, in a laboratory of its own."""
    what = EVENTS[event]
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    case = Case(kind, what.moves_to, relay_apart=what.relay_apart)
    try:
        with case.lab:
            case.start()
            flows(case)
            what.happens(case)
            began = time.monotonic()
            try:
                errors, gap, detail = 0, flows(case) - what.lasts, ""
            except Ended as ended:
                errors, detail = 1, str(ended)
                gap = time.monotonic() - began + calls_again(case)
            if not errors:
                report = case.a.ask("finish")
                good = report["failed"] == "" and report["same"] and report["received"] == report["sent"]
                errors, detail = (0, "") if good else (1, f"{report}")
            return Outcome(event, kind, errors, max(0.0, gap), detail, today)
    except (Failed, Stands) as failed:
        return Outcome(event, kind, 1, None, str(failed), today)


class Ended(Exception):
    """The call has failed."""


class Stands(Exception):
    """Nothing comes any more."""


def flows(case: Case) -> float:
    """Waits until messages sent from now on have come back. The longest time in seconds in which none came."""
    report: dict[str, Any] = case.a.ask("progress")
    target, gap = report["sent"] + FLOWING, report["gap_ms"]
    deadline = time.monotonic() + HANG
    while report["received"] < target:
        if report["failed"]:
            raise Ended(report["failed"])
        if time.monotonic() > deadline:
            raise Stands(f"stands still: {report}")
        time.sleep(0.02)
        report = case.a.ask("progress")
        gap = max(gap, report["gap_ms"])
    return float(gap) / 1000


def calls_again(case: Case) -> float:
    """Waits until a new connection carries something. How long that took, in seconds."""
    began = time.monotonic()
    while not (found := case.a.ask("connect", node=case.b.node_id)).get("echoed"):
        if time.monotonic() > began + HANG:
            raise Stands(f"no new connection: {found}")
        time.sleep(0.05)
    return time.monotonic() - began


# -- many of them ----------------------------------------------------------------------------------------------------


def cells(events: Iterable[str], kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those that can be run, the short ones first."""
    for event in sorted(events, key=lambda event: EVENTS[event].lasts):
        yield from ((event, kind) for kind in kinds if kind in EVENTS[event].kinds)


def run_all(wanted: Iterable[tuple[str, str]], seconds: float, at_once: int) -> Iterator[Outcome]:
    """Several at a time. Begins none that would not be over by then, as far as can be told."""
    deadline, waiting = time.monotonic() + seconds, list(wanted)
    with ThreadPoolExecutor(at_once) as pool:
        running: set[Future[Outcome]] = set()
        while waiting or running:
            while waiting and len(running) < at_once:
                event, kind = waiting.pop(0)
                if time.monotonic() + EVENTS[event].lasts + AROUND_SECONDS < deadline:
                    running.add(pool.submit(run, event, kind))
            if running:
                done = next(as_completed(running))
                running.remove(done)
                yield done.result()


AROUND_SECONDS = 25.0
"""What a cell takes besides: the laboratory, two nodes, and a path that comes back."""


def read(file: Path) -> dict[tuple[str, str], Outcome]:
    """What is known by now: the last word on each cell."""
    known: dict[tuple[str, str], Outcome] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf-8").splitlines():
            outcome = Outcome(**json.loads(line))
            known[outcome.event, outcome.kind] = outcome
    return known


# -- the document ----------------------------------------------------------------------------------------------------

HEAD = f"""\
# {matrix.SURVIVAL}

A gRPC stream, with a message of 16 KiB every {EVERY_SECONDS * 1000:.0f} ms each way and {RTT_MS} ms between the nodes,
while something happens to the caller's side. A cell has the calls that failed, and for how long no
message came, without what an outage, a stop, or a way without any network ({HANDOVER_SECONDS} s) lasts by
itself. Programs that start again are away for {AWAY_SECONDS:.0f} s and the time that they take to start. The call
has no keep-alive of its own. A relay runs beside the rendezvous, on UDP, TCP and TLS; in "relay
restart" it is a program of its own. Made by `python tests/nat/survival.py --seconds 240 --write`,
which goes on where it stopped; each cell is of one run.

"""
TAIL = f"""
"peer restart": the called node is killed and starts again with its identity. Its calls end, as they
must; the time is until a new connection works, from when it is registered again. "Wi-Fi to LTE"
leads behind a carrier's symmetric NAT, "to TCP 443 only" to a network without UDP, both with
{HANDOVER_SECONDS} s without any network in between; in a "hard switch" there is no such time, and in "make
before break" both networks are there for {OVERLAP_SECONDS:.0f} s. — cannot happen: there is no NAT that
forgets, the laboratory gives a host without NAT one network only, and without UDP the relay is the
way to the rendezvous too.
"""


def write(known: dict[tuple[str, str], Outcome]) -> None:
    """Puts the chapter into the document."""
    days = sorted({outcome.when for outcome in known.values()})
    lines = ["| | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    lines += [f"| {event} | " + " | ".join(cell(known, event, kind) for kind in KINDS) + " |" for event in EVENTS]
    ran = f"\nRun on {' and '.join({days[0]: None, days[-1]: None})}.\n" if days else ""
    matrix.replace("survival", HEAD + "\n".join(lines) + "\n" + ran + TAIL)


def cell(known: dict[tuple[str, str], Outcome], event: str, kind: str) -> str:
    """What came of it, or why there is nothing."""
    if kind not in EVENTS[event].kinds:
        return "—"
    if (found := known.get((event, kind))) is None:
        return "not run"
    gap = "never again" if found.gap is None else f"{found.gap:.1f} s"
    return f"{found.errors} / {gap}"


def listed(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Names with semicolons in between, for some have commas."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(";") if name.strip()]
        if unknown := [name for name in names if name not in choices]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {'; '.join(choices)}")
        return names

    return parse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=listed(EVENTS), default=list(EVENTS), help="only these, separated by ;")
    parser.add_argument("--kinds", type=listed(KINDS), default=list(KINDS), help="only these, separated by ;")
    parser.add_argument("--seconds", type=float, default=3600, help="begin nothing that would end later")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help=f"laboratories at a time (default {AT_ONCE})")
    parser.add_argument("--again", action="store_true", help="also those that are known")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where what was found is kept")
    parser.add_argument("--write", action="store_true", help=f"write {matrix.FILE.name}")
    options = parser.parse_args()
    known = read(options.results)
    wanted = [cell for cell in cells(options.events, options.kinds) if options.again or cell not in known]
    if wanted and (why := why_not(links=True)):
        sys.exit(why)
    end_on_sigterm()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for outcome in run_all(wanted, options.seconds, options.at_once):
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        known[outcome.event, outcome.kind] = outcome
        gap = "never again" if outcome.gap is None else f"{outcome.gap:.2f} s"
        print(f"{outcome.event:20} {outcome.kind:20} {outcome.errors} / {gap}  {outcome.detail}", flush=True)
    if options.write:
        write(known)
    missing = [cell for cell in cells(EVENTS, list(KINDS)) if cell not in known]
    failed = [one for one in known.values() if one.gap is None or (one.errors and not EVENTS[one.event].ends_calls)]
    print(f"{len(known)} cells are known, {len(missing)} were not run, {len(failed)} calls failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
