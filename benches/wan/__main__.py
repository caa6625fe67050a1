"""Measures transports over an emulated WAN; benches/README.md, "Long paths", says what and how.

Every row is one link; the systems take turns on it, each in namespaces of its own, so that nothing is remembered.
Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import ROOT, B, Flow, Impossible, Lab, Wan, prepare, ready

SYSTEMS = ("tcp-cubic", "tcp-bbr", "keynet-cubic", "keynet-bbr")

CLEAN = [(10, 20, 1), (10, 50, 2), (10, 200, 1), (100, 20, 0.25), (100, 50, 0.25), (100, 50, 1), (100, 50, 2)]
CLEAN += [(100, 200, 1), (500, 100, 1), (1000, 20, 1), (1000, 50, 0.25)]
LOSSY = [(10, 50, 1), (100, 50, 0.1), (100, 50, 1), (100, 20, 3), (100, 200, 1), (500, 100, 0.1), (1000, 20, 0.1)]
SHARED = [(50, 40), (20, 80), (100, 20)]


@dataclass(frozen=True)
class Measurement:
    table: str
    row: str
    column: str
    run: Callable[[], dict[str, Any]]

    @property
    def key(self) -> str:
        return f"{self.table}: {self.row}: {self.column}"


def seconds(wan: Wan) -> float:
    """So long that the second half is past start-up: a hundred round trips, 8 s at least, 16 at most."""
    return min(max(wan.rtt_ms / 10, 8), 16)


def transfer(wan: Wan, system: str, length: float) -> dict[str, Any]:
    with Lab(wan) as lab:
        flow = Flow(lab, system).start()
        sleep_until(flow.began + length / 2)
        lab.counters()
        sleep_until(flow.began + length)
        link = lab.counters()
        flow.stop()
    middle, end = flow.began + length / 2, flow.began + length
    return {
        "whole": flow.goodput(flow.began, end),
        "steady": flow.goodput(middle, end),
        "queue_ms": link["forth"]["mean_wait_ms"],
        "link": link,
    }


def beside_cubic(wan: Wan, system: str, settle: float, length: float) -> dict[str, Any]:
    """The share of a flow beside a CUBIC TCP flow that came two seconds earlier; 1 is half of what both got."""
    with Lab(wan) as lab:
        other = Flow(lab, "tcp-cubic", 5001).start()
        sleep_until(other.began + 2)
        ours = Flow(lab, system, 5002).start()
        start = ours.began + settle
        sleep_until(start + length)
        link = lab.counters()
        ours.stop()
        other.stop()
    rates = ours.goodput(start, start + length), other.goodput(start, start + length)
    return {"ours": rates[0], "cubic": rates[1], "share": 2 * rates[0] / max(sum(rates), 1e-9), "link": link}


def honest(wan: Wan, length: float) -> dict[str, Any]:
    """What the emulator does with the kernel's TCP, beside what it was asked for."""
    with Lab(wan) as lab:
        ready(lab.traffic(1, "echo", "7"))
        probe = lab.traffic(0, "probe", B, "7", "2")
        assert probe.stdout
        rtt = statistics.median(json.loads(probe.stdout.readline()))
        flow = Flow(lab, "tcp-bbr" if wan.loss else "tcp-cubic").start()
        sleep_until(flow.began + length / 2)
        before = time.monotonic()
        whole = lab.counters()
        sleep_until(flow.began + length)
        link = lab.counters()
        elapsed = time.monotonic() - before
        flow.stop()
    forth, start = link["forth"], whole["forth"]
    through = forth["packets"] + start["packets"]
    return {
        "rtt_ms": rtt,
        "mbit": forth["bytes"] * 8e-6 / elapsed,
        "loss": 100 * (forth["lost"] + start["lost"]) / through,
        "queue_ms": max(forth["max_wait_ms"], start["max_wait_ms"]),
        "late_ms": max(forth["max_late_ms"], link["back"]["max_late_ms"]),
        "dropped_outside": forth["device_drops"] + link["back"]["device_drops"] + forth["refused"],
    }


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def plan(quick: bool) -> Iterator[Measurement]:
    for mbit, rtt, loss in [(10, 50, 0), (100, 100, 1), (1000, 20, 0)]:
        wan = Wan(mbit, rtt, 1, loss)
        yield Measurement("emulator", str(wan), "measured", lambda wan=wan: honest(wan, 2 if quick else 6))
    wans = [Wan(mbit, rtt, bdps) for mbit, rtt, bdps in CLEAN] + [Wan(mbit, rtt, 1, loss) for mbit, rtt, loss in LOSSY]
    for wan in wans[4::7] if quick else wans:
        for system in SYSTEMS:
            length = 3 if quick else seconds(wan)
            table = "loss" if wan.loss else "clean"
            yield Measurement(table, str(wan), system, lambda wan=wan, s=system, t=length: transfer(wan, s, t))
    for mbit, rtt in SHARED[:1] if quick else SHARED:
        wan = Wan(mbit, rtt)
        settle, length = (2, 3) if quick else (12, 32)
        for system in ("tcp-bbr", "keynet-cubic", "keynet-bbr"):
            yield Measurement(
                "beside", str(wan), system, lambda w=wan, s=system, a=settle, t=length: beside_cubic(w, s, a, t)
            )
        settle, length = (2, 3) if quick else (5, 15)
        run = lambda w=wan, a=settle, t=length: beside_cubic(w, "keynet-ledbat", a, t)  # noqa: E731
        yield Measurement("beside", str(wan), "keynet-ledbat", run)


def table(title: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(cells)} |" for row, cells in rows.items()]
    return "\n".join(lines)


def report(results: dict[str, dict[str, Any]]) -> str:
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for key, result in results.items():
        name, row, column = key.split(": ")
        parts.setdefault(name, {}).setdefault(row, {})[column] = result
    texts = []
    if rows := parts.get("emulator"):
        columns = ["RTT, ms", "rate, Mbit/s", "loss, %", "longest queue, ms", "latest packet, ms", "lost elsewhere"]
        names = ["rtt_ms", "mbit", "loss", "queue_ms", "late_ms", "dropped_outside"]
        texts.append(
            table("emulator", columns, {row: [f"{r['measured'][n]:.4g}" for n in names] for row, r in rows.items()})
        )
    for name in ("clean", "loss"):
        for what, unit in (("steady", "Mbit/s"), ("whole", "Mbit/s with start-up"), ("queue_ms", "mean queue, ms")):
            if rows := parts.get(name):
                columns = [*SYSTEMS, "keynet CUBIC / TCP cubic", "keynet BBR / TCP bbr", "keynet BBR / TCP cubic"]
                cells = {row: figures(r, what) for row, r in rows.items()}
                if what == "queue_ms":
                    columns, cells = columns[:4], {row: line[:4] for row, line in cells.items()}
                texts.append(table(unit, columns, cells))
    if rows := parts.get("beside"):
        systems = ["tcp-bbr", "keynet-cubic", "keynet-bbr", "keynet-ledbat"]
        cells = {
            row: [f"{r[s]['ours']:.1f} + {r[s]['cubic']:.1f} ({r[s]['share']:.2f})" if s in r else "-" for s in systems]
            for row, r in rows.items()
        }
        texts.append(table("beside one TCP cubic: it + TCP (of an equal share)", systems, cells))
    return "\n\n".join(texts)


def figures(row: dict[str, Any], what: str) -> list[str]:
    values = {system: row[system][what] for system in row}
    shown = [f"{values[s]:.1f}" if s in values else "-" for s in SYSTEMS]
    for ours, theirs in (("keynet-cubic", "tcp-cubic"), ("keynet-bbr", "tcp-bbr"), ("keynet-bbr", "tcp-cubic")):
        both = ours in values and theirs in values and values[theirs] > 0
        shown.append(f"{values[ours] / values[theirs]:.2f}" if both else "-")
    return shown


def terminated(*_: object) -> None:
    """The namespaces are still taken down, and a second signal does not stop that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("terminated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs; its figures mean nothing")
    parser.add_argument("--only", default="", help="measurements whose name matches, as in the output")
    parser.add_argument(
        "--add", action="store_true", help="keep what the JSON file has, and replace what is measured again"
    )
    parser.add_argument("--json", type=Path, default=ROOT / ".benchmarks" / "wan.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminated)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    made = {"when": time.strftime("%F %T"), "commit": commit.stdout.strip(), "kernel": platform.release()}
    options.json.parent.mkdir(exist_ok=True)
    try:
        prepare()
        results = json.loads(options.json.read_text())["results"] if options.add and options.json.exists() else {}
        for measurement in plan(options.quick):
            if re.search(options.only, measurement.key):
                results[measurement.key] = measurement.run()
                options.json.write_text(json.dumps({**made, "results": results}, indent=1))
                brief = {k: round(v, 2) for k, v in results[measurement.key].items() if not isinstance(v, dict)}
                print(f"{measurement.key}: {brief}", file=sys.stderr, flush=True)
    except Impossible as why:
        sys.exit(f"no emulated link here: {why}")
    print(report(results))


if __name__ == "__main__":
    main()
