"""The exit codes."""

from __future__ import annotations


class ExitCode:
    """What the command exits with; part of its interface, listed in `keynet --help`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    IDENTITY = 3
    UNREACHED = 4
    WRONG_PEER = 5
    DENIED = 6
    BIND = 7
    UDP_BLOCKED = 8
    UNDECIDED = 9
    INTERNAL = 70
    INTERRUPTED = 130
