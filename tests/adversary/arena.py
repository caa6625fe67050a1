"""Where the attacks take place, and what the honest may lose by them: nothing.

The ground is a laboratory (tests/nat/lab): the node that is attacked, one that is not, a rendezvous, the honest, and
the strangers, who have a whole network of source addresses. What goes to third parties ends at the internet, counted.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from driver import Node, Program, Rendezvous, at
from lab import Host, Lab
from lab import Node as Place
from lab.system import ip, run

HERE = Path(__file__).parent
GUARDED, HONEST, STRANGERS, LIAR = (HERE / f"{name}.py" for name in ("guarded", "honest", "strangers", "liar"))
PORT = 7400
"""Of nodes."""
STRANGERS_NETWORK, THIRD_NETWORK = "20.0.0.0/8", "21.0.0.0/8"
FRIENDS = 25
"""Keys of the honest: one for what stays, the others take turns."""
LATER = 2.0
"""Seconds that a dial of an honest peer may take longer than without the attack, on a machine as busy."""
SHARE = 0.7
"""Of the rate of an honest stream that is left to it, on a machine as busy."""
OWN_MEMORY = 24 << 20
"""What the honest themselves and the allocator may make a node grow by: dials, tombstones, sessions, reports."""
WAIT = 90.0
"""A guard against hangs."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large an attack is: `rounds` of honest dials under it, `sources`, `keys`, `rate` a second."""

    rounds: int
    seconds: float
    sources: int
    keys: int
    rate: int


SHORT = Scale(rounds=3, seconds=3.0, sources=8, keys=8, rate=400)
LONG = Scale(rounds=60, seconds=60.0, sources=256, keys=40, rate=4000)


class Ground:
    """The namespaces. Programs are put there by `arena`."""

    def __init__(self) -> None:
        self.lab = Lab()
        self.server = self.lab.server("server")
        self.liar = self.lab.server("liar")
        self.victim, self.bystander, self.strangers = (
            self.lab.host(name) for name in ("victim", "bystander", "strangers")
        )
        # without a box: this one gives a port twice now and then, and so fails one dial in hundreds by itself
        self.honest = self.lab.host("honest")
        self.home = self.lab.nat("home", "full-cone")
        self.roaming = self.lab.host("roaming", behind=[self.home])
        self.internet = Place(self.lab, "internet")

    def __enter__(self) -> Ground:
        self.lab.__enter__()
        try:
            # every address of a network is the strangers' own
            ip([f"route add local {STRANGERS_NETWORK} dev lo"], self.strangers.namespace)
            via = f"via {self.strangers.address} dev {self.strangers.port} onlink"
            ip([f"route add {STRANGERS_NETWORK} {via}"], self.lab.internet)
            run("nft", "-f", "-", namespace=self.lab.internet, text=_counters(self.victim))
        except BaseException:
            self.lab.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lab.stop()

    def counted(self) -> dict[str, tuple[int, int]]:
        """(packets, bytes of IP) by the name of the counter."""
        text = run("nft", "-j", "list", "counters", "table", "inet", "adversary", namespace=self.lab.internet)
        counters = [item["counter"] for item in json.loads(text)["nftables"] if "counter" in item]
        return {counter["name"]: (counter["packets"], counter["bytes"]) for counter in counters}

    @contextlib.contextmanager
    def arena(self, ways: Sequence[str] = ("fresh", "keyed"), **options: Any) -> Iterator[Arena]:
        """The programs of one test."""
        made = Arena(self, [*ways, "beside"])
        try:
            made.open(**options)
            yield made
        finally:
            made.close()


class Arena:
    """One attack, with the honest beside it."""

    def __init__(self, ground: Ground, ways: list[str]) -> None:
        self.ground, self.ways = ground, ways
        self.programs: list[Program] = []
        self.folder = tempfile.TemporaryDirectory()
        self.rendezvous: Rendezvous | None = None
        self.friends: list[str] = []
        self.address = f"{ground.victim.address}:{PORT}"

    def program(self, host: Place, path: Path, **environment: str) -> Node:
        """One more program."""
        paths = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent / "nat")))
        made = Node(host, path, PYTHONPATH=paths, **environment)  # type: ignore[arg-type]
        self.programs.append(made)
        return made

    def lie(self) -> str:
        """Starts a rendezvous that lies; gives its place."""
        self.liar = self.program(self.ground.liar, LIAR)
        return at_place(self.ground.liar, self.liar.ask("start")["node_id"], 4433)

    def relay(self) -> dict[str, str]:
        """Starts a relay; gives its addresses, and `uri`, by which the honest use it."""
        host = self.ground.liar
        udp, tls = at(host.address, 3478), at(host.address, 5349)
        command = ["relay", "--json", "--listen", udp, "--tls", tls, "--user", "friend=secret"]
        command += ["--identity", str(Path(self.folder.name, "relay.pem"))]
        started = Program(host, sys.executable, "-m", "keynet", *command)
        self.programs.append(started)
        assert started.read()["event"] == "ready"
        return {"udp": udp, "tls": tls, "uri": f"turn:friend:secret@{udp}"}

    def open(
        self,
        *,
        rendezvous: Sequence[str] = (),
        lied_to: bool = False,
        relayed: bool = False,
        strangers_at: Place | None = None,
        honest_at: Host | None = None,
        allowed_strangers: int = 0,
        **options: Any,
    ) -> None:
        """Starts everybody. `options` are the attacked node's; so many of the strangers are on its list.

        `lied_to`: it is registered at a rendezvous that lies, too.
        """
        self.log = Path(self.folder.name, "log")
        self.victim = self.program(self.ground.victim, GUARDED, KEYNET_LAB_LOG=str(self.log))
        self.bystander = self.program(self.ground.bystander, GUARDED)
        self.honest = self.program(honest_at or self.ground.honest, HONEST)
        self.strangers = self.program(strangers_at or self.ground.strangers, STRANGERS)
        self.rendezvous = Rendezvous(self.ground.server, more=rendezvous)
        self.friends = self.honest.ask("identities", count=FRIENDS)["names"]
        self.liked = self.strangers.ask("identities", count=allowed_strangers)["names"]
        places = [self.rendezvous.place(), *([self.lie()] if lied_to else [])]
        started = self.victim.ask("start", allow=self.friends + self.liked, rendezvous=places, **options)
        self.node_id, self._pid = started["node_id"], started["pid"]
        self.beside = self.bystander.ask("start", allow=self.friends)["node_id"]
        until(lambda: self.victim.ask("registered")["registered"], "the node registers")
        victim = {"node": self.node_id, "address": self.address, "rendezvous": self.rendezvous.place()}
        if relayed:
            self.relays = self.relay()
            victim["relay"] = self.relays["uri"]
        bystander = {"node": self.beside, "address": f"{self.ground.bystander.address}:{PORT}"}
        self.honest.ask("begin", ways=self.ways, targets={"victim": victim, "bystander": bystander})

    def under(self, attack: str, scale: Scale, **options: Any) -> Outcome:
        """Lets the honest be without the attack, and then with it; tells what both had."""
        self.begin(attack, scale, **options)
        self.go_on(scale)
        return self.end()

    def begin(self, attack: str, scale: Scale, **options: Any) -> None:
        """Measures what the honest have, then begins the attack."""
        self.honest.ask("phase", name="before")
        self._until_dialled(2, 0.0)
        self._before, self._counted = self.memory(), self.ground.counted()
        self.most = self._before
        place = self.rendezvous.place() if self.rendezvous else ""
        where = {"node": self.node_id, "address": self.address, "rendezvous": place}
        self._began = time.monotonic()
        self.strangers.ask("attack", name=attack, where=where, options={**dataclasses.asdict(scale), **options})
        self.honest.ask("phase", name="during")

    def go_on(self, scale: Scale) -> None:
        """Lets the honest be under the attack."""
        self._until_dialled(scale.rounds, scale.seconds)

    def end(self) -> Outcome:
        """Ends the attack, and tells what came of it."""
        said = self.honest.ask("report")
        counts = self.strangers.ask("halt")["counts"]
        seconds = time.monotonic() - self._began
        self._sample()
        now = self.ground.counted()
        third = {name: tuple(a - b for a, b in zip(now[name], self._counted[name], strict=True)) for name in now}
        return Outcome(
            said["phases"], said["ended"], collections.Counter(counts), seconds, self.most - self._before, third
        )

    def memory(self) -> int:
        """What the attacked node holds, in bytes."""
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ports_of_the_honest(self) -> list[int]:
        """From which they speak with the node now."""
        paths = self.victim.ask("paths")["paths"]
        found = [path.rpartition(":") for path in paths]
        return sorted({int(port) for host, _, port in found if host == self.ground.honest.seen_as})

    def close(self) -> None:
        """Ends every program."""
        for program in self.programs:
            program.kill()
        if self.rendezvous is not None:
            self.rendezvous.kill()
        self.folder.cleanup()

    def logged(self) -> list[str]:
        """What the attacked node said, as bytes that a terminal would get."""
        found = self.log.with_name(f"{self.log.name}-{self._pid}.log")
        return found.read_bytes().decode("utf-8", "backslashreplace").split("\n")

    def _sample(self) -> None:
        self.most = max(self.most, self.memory())

    def _until_dialled(self, rounds: int, seconds: float) -> None:
        """Until every way was gone so often, or a dial failed, and so much time is over."""
        began = time.monotonic()

        def done() -> bool:
            self._sample() if hasattr(self, "most") else None
            dialled = self.honest.ask("rounds")["rounds"]
            enough = all(dialled.get(way, 0) >= rounds for way in self.ways)
            return time.monotonic() - began >= seconds and (enough or self.honest.ask("trouble")["trouble"])

        until(done, f"{rounds} rounds of dials", WAIT + seconds + 2 * rounds)


@dataclasses.dataclass
class Outcome:
    """What the honest had before and during an attack, what the strangers counted, and what the node spent."""

    phases: dict[str, dict[str, Any]]
    ended: dict[str, str]
    counts: collections.Counter[str]
    seconds: float
    grown: int
    """Bytes of memory that the node took at most beyond what it had before."""
    third: dict[str, tuple[int, ...]]
    """(packets, bytes) that the node sent to third parties, or that were sent to it in their names."""

    def costs_nobody_anything(self, memory: int) -> None:
        """What must hold whatever strangers do; `memory` is how much they may make the node hold by protocol.md."""
        before, during = self.phases["before"], self.phases["during"]
        assert before["failed"] == []
        assert during["failed"] == [], (during["failed"], self.counts)
        assert self.ended == {"victim": "", "bystander": ""}, ("no stream ends", self.ended, self.counts)
        # the node that nobody attacks shows how much slower the machine itself became
        slower = max(0.0, max(during["dials"]["beside"]) - max(before["dials"]["beside"]))
        for way, took in during["dials"].items():
            usual = max(before["dials"][way])
            assert max(took) <= usual + slower + LATER, (way, usual, slower, took)
        rates = {name: self._rates(name) for name in ("victim", "bystander")}
        busy = min(1.0, rates["bystander"][1] / rates["bystander"][0])
        assert rates["victim"][1] >= SHARE * busy * rates["victim"][0], rates
        assert self.grown <= memory + OWN_MEMORY, f"{self.grown / 2**20:.1f} MiB"

    def _rates(self, stream: str) -> tuple[float, float]:
        before, during = (
            self.phases[name]["bytes"].get(stream, 0) / self.phases[name]["seconds"] for name in ("before", "during")
        )
        return before, during


def until(condition: Any, what: str, seconds: float = WAIT) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for too long: {what}"
        time.sleep(0.05)


def at_place(host: Host, node: str, port: int) -> str:
    """A node as `rendezvous=` wants it."""
    return f"{node}@{at(host.address, port)}"


def _counters(victim: Host) -> str:
    return f"""
table inet adversary {{
  counter aimed {{ }}
  counter claimed {{ }}
  chain pre {{
    type filter hook prerouting priority -300
    iifname "{victim.port}" ip daddr {THIRD_NETWORK} counter name aimed drop
    ip saddr {THIRD_NETWORK} ip daddr {victim.address} counter name claimed
  }}
}}
"""
