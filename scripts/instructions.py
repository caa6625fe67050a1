"""Count what the core costs in instructions, with callgrind, and compare with benches/instructions.txt.

For `make bench-instructions`. A count does not depend on the machine's mood. What is judged does not depend on the
machine either: instructions of the program itself, and how often it calls the C library (copies, allocations). How many
instructions the library takes for them depends on the processor, so that column is only shown. KEYNET_BLESS=1 writes
the file anew; names of workloads as arguments run a part.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

BASELINE = Path("benches/instructions.txt")
OUTPUT = Path("target/callgrind")
WORKLOADS = ("handshakes", "bulk-cubic", "bulk-bbr", "bulk-ledbat", "bulk-loss", "requests", "connections")
# two runs differ by less than 0.01 % (see benches/README.md), another order of linking by some tenths
TOLERANCE = 0.02
TOP = 8
NAME = re.compile(r"\((\d+)\)(?: (.*))?")


class Count(NamedTuple):
    """What one workload took: in the program, in calls from it to libraries, and inside of those."""

    instructions: int
    calls: int
    library: int
    datagrams: int
    bytes: int
    connections: int
    functions: Counter[str]


class Profile:
    """A callgrind file: what each function of the program itself took, and what happened outside of it."""

    def __init__(self, path: Path, program: str) -> None:
        self.functions: Counter[str] = Counter()
        self.calls = 0
        self.library = 0
        self.names: dict[tuple[str, str], str] = {}
        here = callee = function = ""
        lines = iter(path.read_text(encoding="utf-8", errors="replace").splitlines())
        for line in lines:
            key, _, value = line.partition("=")
            if key == "ob":
                here = self.name("ob", value)
            elif key == "fn":
                function = self.name("fn", value)
                callee = here
            elif key == "cob":
                callee = self.name("ob", value)
            elif key == "cfn":
                self.name("fn", value)
            elif key == "calls":
                if here.endswith(program) and not callee.endswith(program):
                    self.calls += int(value.split()[0])
                callee = here
                next(lines)  # what the call took is told where it was taken
            elif line[:1] and line[0] in "+-*0123456789":
                cost = int(line.split()[1])
                if here.endswith(program):
                    self.functions[function] += cost
                else:
                    self.library += cost

    def name(self, kind: str, text: str) -> str:
        """Names are written once, and numbered."""
        match = NAME.fullmatch(text)
        if match is None:
            raise ValueError(f"callgrind wrote a name as {text!r}")
        number, name = match.groups()
        if name is not None:
            self.names[kind, number] = name
        return self.names[kind, number]


def build() -> str:
    """Build the bench; return the path of its program."""
    command = ["cargo", "bench", "--locked", "--no-default-features", "--bench", "instructions", "--no-run"]
    # other flags would be other instructions
    env = {name: value for name, value in os.environ.items() if name not in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS")}
    built = subprocess.run([*command, "--message-format=json"], env=env, stdout=subprocess.PIPE, check=True, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    programs = [message["executable"] for message in messages if message.get("executable")]
    return str(programs[-1])


def count(program: str, workload: str) -> Count:
    """Run one workload under callgrind."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    out = OUTPUT / workload
    valgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
    valgrind.append("--toggle-collect=*instructions::measured*")
    run = subprocess.run([*valgrind, program, workload], stdout=subprocess.PIPE, check=True, text=True)
    datagrams, payload, connections = (int(number) for number in run.stdout.split())
    profile = Profile(out, Path(program).name)
    instructions = profile.functions.total()
    if instructions == 0:
        raise SystemExit("instructions: nothing was counted; has `measured` in benches/instructions another name now?")
    return Count(instructions, profile.calls, profile.library, datagrams, payload, connections, profile.functions)


def read_baseline() -> tuple[str, dict[str, tuple[int, int]]]:
    """The compiler, and instructions and calls by workload."""
    compiler, rows = "", {}
    for line in BASELINE.read_text(encoding="utf-8").splitlines():
        if line.startswith("rustc "):
            compiler = line
        elif line and not line.startswith("#"):
            name, instructions, calls = line.split()
            rows[name] = int(instructions), int(calls)
    return compiler, rows


def bless(compiler: str, counts: dict[str, Count]) -> None:
    """Write the baseline anew."""
    rows = "".join(f"{name:12} {it.instructions:>12} {it.calls:>10}\n" for name, it in counts.items())
    head = (
        "# workload, instructions of the program, its calls to the C library: KEYNET_BLESS=1 make bench-instructions\n"
    )
    BASELINE.write_text(head + compiler + "\n" + rows, encoding="utf-8")
    print(f"{BASELINE} is written")


def show(counts: dict[str, Count], baseline: dict[str, tuple[int, int]]) -> None:
    """Print the table, and where the instructions went."""
    print("| workload | instructions, M | to baseline | libc calls | to baseline | a datagram | a GB, M | in libc, M |")
    print("|---|---|---|---|---|---|---|---|")
    for name, it in counts.items():
        old = baseline.get(name)
        pairs = zip((it.instructions, it.calls), old or (0, 0), strict=True)
        beside = [f"{new / was - 1:+.2%}" if was else "new" for new, was in pairs]
        per_gb = f"{it.instructions / it.bytes * 1e3:,.0f}" if it.bytes > 1 << 20 else "-"
        print(
            f"| {name} | {it.instructions / 1e6:,.2f} | {beside[0]} | {it.calls:,} | {beside[1]} "
            f"| {it.instructions / it.datagrams:,.0f} | {per_gb} | {it.library / 1e6:,.2f} |"
        )
    for name, it in counts.items():
        print(f"\n{name}: where the instructions of the program go")
        for function, cost in it.functions.most_common(TOP):
            print(f"  {cost / it.instructions:6.1%}  {function}")


def worse(counts: dict[str, Count], baseline: dict[str, tuple[int, int]]) -> list[str]:
    """What is over the baseline by more than the tolerance."""
    found = []
    for name, it in counts.items():
        if name not in baseline:
            found.append(f"{name} is not in {BASELINE}")
            continue
        pairs = zip((it.instructions, it.calls), baseline[name], strict=True)
        for what, (new, old) in zip(("instructions", "libc calls"), pairs, strict=True):
            if new > old * (1 + TOLERANCE):
                found.append(f"{name}: {new:,} {what}, the baseline has {old:,} ({new / old - 1:+.1%})")
    return found


def main() -> None:
    """Count, show, and compare or write."""
    if shutil.which("valgrind") is None:
        raise SystemExit("instructions: valgrind is not on the PATH: apt-get install valgrind (Linux only)")
    compiler = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    program = build()
    counts = {workload: count(program, workload) for workload in sys.argv[1:] or WORKLOADS}
    if os.environ.get("KEYNET_BLESS") == "1":
        if set(counts) != set(WORKLOADS):
            raise SystemExit("instructions: the baseline is written for all workloads at once")
        bless(compiler, counts)
    old_compiler, baseline = read_baseline()
    show(counts, baseline)
    if compiler != old_compiler:
        print(f"\nnot judged: the baseline is {old_compiler}'s, this is {compiler}")
        return
    if found := worse(counts, baseline):
        raise SystemExit(f"\nmore than {TOLERANCE:.0%} worse:\n  " + "\n  ".join(found))
    print(f"\nno workload is more than {TOLERANCE:.0%} above the baseline")


if __name__ == "__main__":
    main()
