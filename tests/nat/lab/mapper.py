"""The program of a box that opens ports for hosts inside: miniupnpd, which many routers have (PCP, NAT-PMP, UPnP)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .system import LabError, in_namespace

if TYPE_CHECKING:
    from .nodes import Nat

_PROGRAM = "miniupnpd"
_READY = 5.0


def why_not() -> str:
    """Why this machine cannot have boxes that open ports, and what to do; nothing if it can."""
    return "" if shutil.which(_PROGRAM) else f"{_PROGRAM} is missing (miniupnpd-nftables)"


def start(nat: Nat) -> subprocess.Popen[bytes]:
    """Starts it in a box; it answers when this returns."""
    if why := why_not():
        raise LabError(why)
    pcp, upnp = nat.box.mapper in ("pcp", "both"), nat.box.mapper in ("upnp", "both")
    lines = [
        "ext_ifname=wan0",
        "listening_ip=lan0",
        "ipv6_disable=yes",
        "secure_mode=yes",
        f"enable_natpmp={'yes' if pcp else 'no'}",
        f"enable_upnp={'yes' if upnp else 'no'}",
        "upnp_table_name=mapper",
        "upnp_nat_table_name=mapper",
        "upnp_forward_chain=opened",
        "upnp_nat_chain=to_inside",
        "upnp_nat_postrouting_chain=to_outside",
        f"allow 1024-65535 {nat.lan} 1024-65535",
        "deny 0-65535 0.0.0.0/0 0-65535",
    ]
    with tempfile.TemporaryDirectory() as directory:
        settings, pid = Path(directory, "conf"), Path(directory, "pid")
        settings.write_text("\n".join(lines) + "\n")
        with in_namespace(nat.namespace):
            child = subprocess.Popen(
                [_PROGRAM, "-d", "-f", str(settings), "-P", str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        # it listens before it writes this
        deadline = time.monotonic() + _READY
        while not pid.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                child.kill()
                child.wait()
                raise LabError(f"{_PROGRAM} does not start in {nat.name}")
            time.sleep(0.01)
    return child
