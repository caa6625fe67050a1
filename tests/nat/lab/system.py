"""What the laboratory asks of the machine: namespaces, commands, processes by their ids; and whether all is there."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """The laboratory cannot be built, or was used wrongly; the text says why."""


@contextlib.contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """Moves this thread into a network namespace for the block; children and sockets made inside belong to it."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(NAMESPACES / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(here)
    finally:
        os.close(here)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def run(*command: str, namespace: str | None = None, text: str = "", check: bool = True) -> str:
    """Runs a short command, in a namespace if one is named; gives its output."""
    with in_namespace(namespace) if namespace else contextlib.nullcontext():
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if check and done.returncode:
        raise LabError(f"{' '.join(command)} (in {namespace}): {done.stderr.strip()}\n{text}")
    return done.stdout


def ip(lines: Iterable[str], namespace: str | None = None, *, check: bool = True) -> None:
    """Several `ip` commands in one process."""
    if text := "".join(f"{line}\n" for line in lines):
        run("ip", *(() if check else ("-force",)), "-batch", "-", namespace=namespace, text=text, check=check)


def started_at(pid: int) -> int | None:
    """When a process began, in the kernel's ticks: with the pid it names the process for ever. None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # an unreaped zombie is gone as well
    return None if fields[0] in "ZX" else int(fields[19])


def processes_in(namespaces: Iterable[str]) -> list[int]:
    """Every process that lives in one of these namespaces."""
    inodes, found = set(), []
    for name in namespaces:
        with contextlib.suppress(OSError):
            inodes.add((NAMESPACES / name).stat().st_ino)
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid() and (entry / "ns/net").stat().st_ino in inodes:
                found.append(int(entry.name))
    return found


def remove(namespaces: Iterable[str]) -> None:
    """Ends what runs in these namespaces, by pid, and takes them away."""
    names = [name for name in namespaces if (NAMESPACES / name).exists()]
    if not names:
        return
    # TERM first, so that they can end their own children; then there is nothing more to wait for
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 1
        for pid in processes_in(names):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while processes_in(names) and time.monotonic() < deadline:
            time.sleep(0.01)
    ip((f"netns delete {name}" for name in names), check=False)


# what the rulesets need of the kernel
_PROBE = """
table ip probe {
  map ports {
    type inet_service : inet_service
    flags dynamic,timeout
    timeout 1s
  }
  chain post {
    type nat hook postrouting priority srcnat
    meta l4proto udp masquerade fully-random
  }
}
"""


@functools.cache
def why_not(*, links: bool = False) -> str:
    """Why this machine cannot have the laboratory (`links`: with delays), and what to do; nothing if it can."""
    prefix = "NAT laboratory (network namespaces)"
    if sys.platform != "linux" or os.geteuid() != 0:
        return f"{prefix}: needs Linux and root"
    needed = [("ip", "iproute2"), ("unshare", "util-linux"), ("nft", "nftables"), ("conntrack", "conntrack")]
    if links:
        needed.append(("cc", "gcc libc6-dev"))
    missing = {program: package for program, package in needed if not shutil.which(program)}
    if missing:
        words = ", ".join(f"{program} ({package})" for program, package in missing.items())
        return f"{prefix}: missing {words}"
    if links and not Path("/dev/net/tun").exists():
        return f"{prefix}: /dev/net/tun is missing: the kernel has no TUN driver, or the container does not pass it on"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "-f", "-"], input=_PROBE, text=True, capture_output=True, check=False
    )
    if tried.returncode:
        return f"{prefix}: no namespace with nftables can be made: {tried.stderr.strip()}"
    return ""
