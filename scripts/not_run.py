"""What `make test` did not run, and how to get it: the tests wrote it to the file that KEYNET_NOT_RUN names.

A line is the test, a tab, and the reason. Where nothing is missing nothing is said.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path


def report(lines: list[str], packages: str, *, root: bool) -> str:
    """The text for a person; empty when everything ran."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for line in dict.fromkeys(lines):
        test, _, reason = line.partition("\t")
        by_reason[reason].append(test)
    if not by_reason:
        return ""
    number = sum(map(len, by_reason.values()))
    said = [f"All tests that can run on this machine passed. Not run: {number}."]
    for reason, tests in sorted(by_reason.items()):
        said.append(f"  {reason}")
        files = Counter(test.partition("::")[0] for test in tests)
        said += [f"    {file}: {count}" for file, count in sorted(files.items())]
    if packages:
        said.append(f"Programs that are missing: sudo apt-get install {packages}")
        said.append("`make test` as root installs them by itself where there is apt.")
    if not root:
        said.append("Tests of NATs make network namespaces, for which they must be root.")
    return "\n".join(said)


def main() -> None:
    """Reads the file and prints."""
    path = Path(os.environ["KEYNET_NOT_RUN"])
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    tools = Path(__file__).with_name("test-tools.sh")
    packages = subprocess.run(["sh", str(tools), "missing"], stdout=subprocess.PIPE, text=True, check=True).stdout
    if text := report(lines, packages.strip(), root=os.geteuid() == 0):
        print(f"\n{text}", file=sys.stderr)


if __name__ == "__main__":
    main()
