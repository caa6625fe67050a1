"""A laboratory to look around in: `cd tests/nat && python -m lab a=symmetric:timeout=5 b=cgnat --rtt 40`.

It stands until Ctrl-C, with a server beside the hosts; `--rules KIND` prints what a kind is made of.
"""

from __future__ import annotations

import argparse
import signal
import sys

from . import KINDS, Lab, LabError, boxes, why_not
from .rules import ruleset


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("hosts", nargs="*", metavar="NAME=KIND", help=f"kinds: {', '.join(KINDS)}")
    parser.add_argument("--rtt", type=float, default=0.0, help="round trip between two of the hosts in ms")
    parser.add_argument("--rules", metavar="KIND", help="print the rulesets of a kind, from the host outwards")
    options = parser.parse_args()
    try:
        if options.rules:
            print("\n".join(ruleset(box, "198.51.100.1", "192.168.1.2") for box in boxes(options.rules)))
            return 0
        if why := why_not(links=options.rtt > 0):
            sys.exit(why)
        lab = Lab(rtt_ms=options.rtt)
        lab.server("server")
        for name, _, kind in (text.partition("=") for text in options.hosts):
            lab.host(name, kind or "none")
        with lab:
            for host in lab.hosts.values():
                print(f"{host.address:16} seen as {host.seen_as:16} ip netns exec {host.namespace} sh")
            signal.sigwait({signal.SIGINT})
    except LabError as error:
        sys.exit(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
