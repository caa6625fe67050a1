"""The whole matrix: every pair of kinds, both ways round, as a table. `python tests/nat/matrix.py --help`

python tests/nat/matrix.py --kinds symmetric,port-restricted --runs 5
python tests/nat/matrix.py --write                    # docs/nat-matrix.md, as KEYNET_WRITE_MATRIX=1 make test-nat does
"""

from __future__ import annotations

import argparse
import datetime
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from lab import KINDS, end_on_sigterm, why_not
from pairs import Case, Outcome, Result, every, missed_searches, run_all

FILE = Path(__file__).resolve().parents[2] / "docs" / "nat-matrix.md"
RUNS = 3

_HEAD = """\
# Which NATs keynet gets through

Made by `KEYNET_WRITE_MATRIX=1 make test-nat`; do not edit. Every node runs in a network namespace of its own behind a
NAT that nftables makes ([tests/nat/lab](../tests/nat/lab)), and knows nothing of the other but its node id. Both are
registered at one rendezvous on a public host. The row dials the column, anew for every run: new nodes, and NATs that
have forgotten the last ones. When it dials, both are registered and know what their NATs do.

A cell has the median and the longest time from CONNECT to 200 in milliseconds, over {runs} runs on {day}; or the
reason why there is no direct path. The nodes share two processors with other pairs of the matrix, so small numbers say
more about these than about the network.
"""

_RELAYED = "# The same with a relay: "
SURVIVAL = "What survives what"
_RELAYS = {"coturn": "coturn on a host of its own", "keynet": "keynet's own, beside the rendezvous"}
_RELAYED_HEAD = """\
Behind the times: `d` went directly, `r` over the relay, `r→d` first over the relay and then directly. A pair that can
go directly is given 45 s for it, the search for a new path included. Made by
`python tests/nat/matrix.py --relay … --write`.
"""


def write(results: Iterable[Result]) -> None:
    """Writes the document."""
    results = list(results)
    runs = max(len(result.outcomes) for result in results)
    parts = [_HEAD.format(runs=runs, day=datetime.datetime.now(datetime.timezone.utc).date())]
    parts += [
        f"## {rtt_ms} ms between the nodes, half of it to the rendezvous\n\n{table(results, rtt_ms)}\n"
        for rtt_ms in sorted({result.case.rtt_ms for result in results})
    ]
    others = [result for result in results if result.case.where != "apart" or ":" in result.case.a]
    rows = sorted(f"| {_words(result.case)} | {cell(result)} | {', '.join(paths(result))} |\n" for result in others)
    parts.append(f"## Behind one NAT, and with IPv6\n\n| | | reached at |\n|---|---|---|\n{''.join(rows)}")
    missed, _ = missed_searches(results)
    searches = sum(len(result.outcomes) for result in results if result.expected.how == "by search")
    parts.append(f"Searches among random ports: {searches}, of which {missed} found nothing.\n")
    replace("", "\n".join(parts))


def write_relayed(results: Iterable[Result], relay: str) -> None:
    """Adds the tables with a relay to the document, in place of those that were there."""
    results = list(results)
    parts = [f"{_RELAYED}{_RELAYS[relay]}\n", _RELAYED_HEAD]
    parts += [
        f"## {rtt_ms} ms between the nodes, with {relay}\n\n{table(results, rtt_ms)}\n"
        for rtt_ms in sorted({result.case.rtt_ms for result in results})
    ]
    replace(relay, "\n".join(parts))


def replace(name: str, text: str) -> None:
    """Writes one part of the document; the others stay as they are."""
    headings = {**{relay: f"{_RELAYED}{words}" for relay, words in _RELAYS.items()}, "survival": f"# {SURVIVAL}"}
    found = re.split(
        f"^(?=(?:{'|'.join(map(re.escape, headings.values()))})$)", FILE.read_text(encoding="utf-8"), flags=re.M
    )
    parts = {"": found[0]}
    for part in found[1:]:
        parts[next(name for name, heading in headings.items() if part.startswith(heading))] = part
    parts[name] = text
    kept = [parts[name].strip("\n") for name in ("", "survival", *_RELAYS) if name in parts]
    FILE.write_text("\n\n".join(kept) + "\n", encoding="utf-8")


def table(results: Iterable[Result], rtt_ms: int) -> str:
    """Rows dial columns."""
    found = {(r.case.a, r.case.b): r for r in results if r.case.where == "apart" and r.case.rtt_ms == rtt_ms}
    kinds = [kind for kind in KINDS if any(kind in pair for pair in found)]
    lines = ["| dials | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for a in kinds:
        cells = [cell(found[a, b]) if (a, b) in found else "" for b in kinds]
        lines.append(f"| **{a}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(result: Result) -> str:
    """What came of a case."""
    met = [outcome for outcome in result.outcomes if outcome.outcome in ("direct", "relayed")]
    direct = [outcome.ms for outcome in met]
    reasons = sorted({outcome.outcome for outcome in result.outcomes} - {"direct", "relayed"})
    words = [f"{statistics.median(direct):.0f} / {max(direct):.0f}"] if direct else []
    kinds = sorted({_way(outcome) for outcome in met if outcome.first})
    if words and kinds:
        words[0] += f" {', '.join(kinds)}"
    if direct and reasons:
        words[0] += f" in {len(direct)} of {len(result.outcomes)}"
    return "; ".join([*words, *(reason.replace("_", " ") for reason in reasons)])


def _way(outcome: Outcome) -> str:
    if outcome.first == outcome.outcome:
        return {"direct": "d", "relayed": "r"}[outcome.outcome]
    return f"{outcome.first[0]}→{outcome.outcome[0]}"


def paths(result: Result) -> list[str]:
    """Where the other node was reached, without the port."""
    return sorted({outcome.path.rpartition(":")[0] for outcome in result.outcomes if outcome.path})


def _words(case: Case) -> str:
    rtt = f", {case.rtt_ms} ms" if case.rtt_ms else ""
    if case.where == "one LAN":
        return f"two hosts on one LAN behind {case.a}"
    if case.where == "one carrier":
        return f"two homes (linux-masquerade) behind one carrier's {case.a}"
    return f"{case.a} dials {case.b}{rtt}"


def _line(result: Result) -> str:
    verdict = f"MISMATCH, expected {result.expected.outcome}" if result.misses else result.expected.how
    details = [outcome.detail for outcome in result.misses]
    return "  ".join([f"{result.case!s:48}", f"{cell(result):24}", verdict, *paths(result), *details])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), help="only pairs of these, separated by commas")
    parser.add_argument("--runs", type=int, default=RUNS, help="dials of each pair")
    parser.add_argument("--only", default="", help="only cases whose description contains this")
    parser.add_argument("--at-once", action="store_true", help="dial as soon as the dialler has started")
    parser.add_argument(
        "--relay", choices=["", "coturn", "keynet"], default="", help="with a relay (appends to the document)"
    )
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    options = parser.parse_args()
    if why := why_not(links=True):
        sys.exit(why)
    end_on_sigterm()
    cases = [case for case in every(options.kinds.split(",")) if options.only in str(case)]
    results = []
    for result in run_all(cases, options.runs, settled=not options.at_once, relay=options.relay):
        results.append(result)
        print(_line(result), flush=True)
    if options.write and options.relay:
        write_relayed(results, options.relay)
    elif options.write:
        write(results)
    missed, allowed = missed_searches(results)
    wrong = [result for result in results if result.misses and result.expected.how != "by search"]
    print(f"{len(results)} cases, {len(wrong)} went wrong, {missed} searches found nothing ({allowed} may)")
    return bool(wrong) or missed > allowed


if __name__ == "__main__":
    sys.exit(main())
