"""Many nodes that dial each other at once, or one: how many succeed, how long it takes, and what it costs.

python tests/nat/many.py 60                   # every pair of 60 nodes
python tests/nat/many.py --callers 400        # 400 nodes dial one
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driver import Node, Program
from lab import Lab, end_on_sigterm, why_not
from meeting import Meeting

# between them and the rendezvous, and twice as much from one to another
RTT_MS = 30.0
HOSTS = 4
# a dial takes 15 s at most, on a machine that has nothing else to do
PATIENCE = 300.0
TICKS = os.sysconf("SC_CLK_TCK")


CROWD = Path(__file__).with_name("crowd.py")


class Town:
    """Hosts behind NATs of their own, with some nodes in a program in each, and a rendezvous with its relay."""

    def __init__(self, lab: Lab) -> None:
        server = lab.server("server")
        self._hosts = [lab.host(f"h{n}", "port-restricted") for n in range(HOSTS)]
        self._lab, self._server = lab, server

    def populate(self, count: int) -> list[str]:
        """Starts the rendezvous and the nodes; who they are."""
        # one network has an eighth of the places, and all hosts are of one
        self.meeting = Meeting(self._server, own_relay=True, max_nodes=16 * count)
        self.crowds = [Node(host, CROWD) for host in self._hosts]
        shares = [count // HOSTS + (n < count % HOSTS) for n in range(HOSTS)]
        rendezvous = [self.meeting.rendezvous.place()]
        begun = [
            crowd.begin("populate", count=share, rendezvous=rendezvous)
            for crowd, share in zip(self.crowds, shares, strict=True)
        ]
        return [
            node
            for crowd, number in zip(self.crowds, begun, strict=True)
            for node in crowd.answer(number, PATIENCE)["node_ids"]
        ]

    def dial(self, nodes: Sequence[str], *, once: bool = False) -> list[dict[str, Any]]:
        """Every node dials these at the same time; what came of each dial."""
        begun = [crowd.begin("dial", nodes=list(nodes), once=once) for crowd in self.crowds]
        answers = [crowd.answer(number, PATIENCE) for crowd, number in zip(self.crowds, begun, strict=True)]
        return [dial for answer in answers for dial in answer["dials"]]

    def processor_seconds(self) -> dict[str, float]:
        """What the programs have used so far."""
        programs: dict[str, list[Program]] = {
            "rendezvous": [self.meeting.rendezvous.program],
            "nodes": list(self.crowds),
        }
        return {name: sum(_used(one.process.pid) for one in some) for name, some in programs.items()}


def everybody(count: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every pair of so many nodes dials once; what came of it, and the seconds of a processor."""
    lab = Lab(rtt_ms=2 * RTT_MS)
    town = Town(lab)
    with lab:
        nodes = town.populate(count)
        return _measured(town, nodes, once=True)


def callers(count: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """So many nodes dial one other at once."""
    lab = Lab(rtt_ms=2 * RTT_MS)
    town = Town(lab)
    called = lab.host("called", "port-restricted")
    with lab:
        town.populate(count)
        one = Node(called)
        town.meeting.start(one)
        town.meeting.settle(one)
        return _measured(town, [one.node_id], once=False)


def _measured(town: Town, nodes: list[str], *, once: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    before = town.processor_seconds()
    began = time.monotonic()
    dials = town.dial(nodes, once=once)
    took = time.monotonic() - began
    after = town.processor_seconds()
    return dials, {"seconds": took, **{name: after[name] - before[name] for name in after}}


def _used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _report(dials: list[dict[str, Any]], cost: dict[str, float]) -> str:
    good = sorted(dial["ms"] / 1000 for dial in dials if dial.get("echoed"))
    lines = [f"{len(good)} of {len(dials)} dials"]
    if good:
        at = [good[min(len(good) - 1, len(good) * percent // 100)] for percent in (50, 95, 99)]
        lines[0] += ", p50 {:.1f} s, p95 {:.1f} s, p99 {:.1f} s, the last {:.1f} s".format(*at, good[-1])
    lines.append(", ".join(f"{name} {value:.1f}" for name, value in cost.items()))
    reasons = Counter(dial["answer"].splitlines()[0][:120] for dial in dials if not dial.get("echoed"))
    lines += [f"{count} x {reason}" for reason, count in reasons.most_common(8)]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="?", type=int, default=60, help="every pair of so many dials once (60)")
    parser.add_argument("--callers", type=int, help="so many nodes dial one other instead")
    arguments = parser.parse_args()
    if why := why_not(links=True):
        sys.exit(why)
    end_on_sigterm()
    print(_report(*(callers(arguments.callers) if arguments.callers else everybody(arguments.nodes))))


if __name__ == "__main__":
    main()
