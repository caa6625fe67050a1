"""The emulated access links: the emulator of benches/wan, one process a link."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from pathlib import Path

from .system import LabError

_BUILD = Path(__file__).resolve().parents[3] / "benches" / "wan" / "emulator.py"
_building = threading.Lock()


@functools.cache
def _emulator() -> str:
    done = subprocess.run([sys.executable, str(_BUILD)], text=True, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"the link emulator cannot be built: {done.stderr.strip()}")
    return done.stdout.strip()


def start(one_end: tuple[str, str], other_end: tuple[str, str], delay_ms: float) -> subprocess.Popen[bytes]:
    """A link between two devices, (namespace, name) each, which it makes. It ends when its standard input does."""
    with _building:
        emulator = _emulator()
    ends = [":".join(end) for end in (one_end, other_end)]
    link = subprocess.Popen([emulator, *ends, f"delay={delay_ms}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert link.stdout
    if link.stdout.readline() != b"ready\n":
        raise LabError("a link did not start")
    return link
