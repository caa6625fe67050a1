"""Builds the link emulator, for benches/wan and for tests/nat, and prints where it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("link.c")
EMULATOR = SOURCE.parents[2] / "target" / "wan-link"


def build() -> Path:
    if not EMULATOR.exists() or EMULATOR.stat().st_mtime < SOURCE.stat().st_mtime:
        EMULATOR.parent.mkdir(exist_ok=True)
        # into place in one step: others may be building or running it
        made = EMULATOR.with_name(f"{EMULATOR.name}.{os.getpid()}")
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(made), str(SOURCE)], check=True)
        made.rename(EMULATOR)
    return EMULATOR


if __name__ == "__main__":
    print(build())
