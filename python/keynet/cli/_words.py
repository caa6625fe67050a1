"""What is written to people: as wide as their terminal, in colour where they want it, in words of the command."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from typing import TextIO

from .._reasons import Reason
from .._text import printable
from ..errors import KeynetError

WIDTH = 80
"""Columns of a line at most, however wide the terminal is."""

_ADVICE = {
    Reason.INVALID_ARGUMENT: "correct the flag, variable or key that the message names; `keynet help COMMAND`",
    Reason.PROXY_CLOSED: "start the node first: `keynet up`",
    Reason.UNKNOWN_NODE: "name a rendezvous (--rendezvous NODE@HOST:PORT), or an address of the node",
    Reason.TOO_MANY_CONNECTIONS: "close connections, or raise max_clients under [limits] in the configuration file",
    Reason.SERVICE_NOT_FOUND: "ask for a port that the peer offers (its --service PORT=BACKEND)",
    Reason.ACCESS_DENIED: "ask the peer to let this node in: --allow, with the node id of this node",
    Reason.PEER_BUSY: "try again later, or raise the peer's limits",
}
"""Where what the core advises is about the Python package."""

_OPTIONS = {
    "listen": "--listen",
    "local": "--local",
    "patience": "--patience",
    "realm": "--realm",
    "metrics": "--metrics",
    "nats": "--nats",
    "forward": "--forward",
    "rendezvous": "--rendezvous",
    "stun": "--stun",
    "public_stun": "--public-stun",
    "relays": "--relay",
    "controller": "controller",
    "services": "--service",
    "service": "--service",
    "allow": "--allow",
    "allowed_peers": "--allow-peer",
    "addresses": "--stun",
    "external_addresses": "--external",
    "relay_addresses": "--relay-address",
    "introduction_peers": "--introduction-peer",
    "tls": "--tls",
    "limits": "[limits]",
    "priority": "priority",
}
"""Arguments of the package that a message may begin with, and the flags that they come from."""


_RELAY_OPTIONS = {
    "listen": "--relay",
    "tls": "--relay-tls",
    "external_addresses": "--relay-external",
    "allowed_peers": "--relay-allow-peer",
    "weight": "--relay-weight",
}
"""The same for the relay in the process of a rendezvous, whose messages begin with "relay: "."""


def advice(error: KeynetError) -> str:
    """What to try, for who sits at the command."""
    return _ADVICE.get(error.reason, error.advice)


def detail(error: KeynetError) -> str:
    """What exactly went wrong, with flags in place of arguments of the Python package."""
    text = error.detail
    if error.reason is not Reason.INVALID_ARGUMENT:
        return text
    if (match := re.match(r"relay: (\w+)(?=:)", text)) and (flag := _RELAY_OPTIONS.get(match[1])):
        return flag + text[match.end() :]
    match = re.match(r"(\w+)(?=[:=. ])", text)
    if match and (flag := _OPTIONS.get(match[1])):
        text = flag + text[match.end() :]
    return text.replace("relay: relay:", "relay:")


def redacted(text: str) -> str:
    """The text without what stands before an @, where users and passwords are."""
    return re.sub(r"((?:turns?:|//|=|^|\s|['\"])[^\s@'\"/]*:)[^\s@]+(?=@)", r"\1...", text)


MAX_LINE = 4_096
"""Characters of a line for people: an error with its longest detail, and a node's addresses."""


def steady(text: str) -> str:
    """What is written to a terminal: lines, and colours of this command's own; all else that does not print is escaped.

    What others say is made printable where it comes in. This is the last place, for what was forgotten there.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        piece if piece in _OWN else "\n".join(printable(line, _ENDLESS) for line in piece.split("\n"))
        for piece in _PAINT.split(text)
    )


def is_colourful(stream: TextIO) -> bool:
    """Whether the stream is a terminal of somebody who wants colour (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def width(stream: TextIO) -> int | None:
    """Columns that lines for this stream have; None: it is no terminal, and a line is a line."""
    if not stream.isatty():
        return None
    return max(20, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def wrapped(text: str, columns: int | None, *, indent: int = 2) -> str:
    """Breaks lines that are too long between words; what follows is indented a little more than its beginning."""
    if columns is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) < columns:
            lines.append(line)
            continue
        left = len(line) - len(line.lstrip())
        lines += textwrap.wrap(
            line,
            columns - 1,
            initial_indent=" " * left,
            subsequent_indent=" " * (left + indent),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}
_OWN = frozenset(f"\033[{code}m" for code in (*_COLOURS.values(), "0"))
_PAINT = re.compile(f"({'|'.join(map(re.escape, sorted(_OWN)))})")
_ENDLESS = 1 << 30
"""Here nothing is cut: a table of 10,000 peers is long."""


def painted(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, where that is wanted."""
    return f"\033[{_COLOURS[colour]}m{text}\033[0m" if is_colourful(stream) else text
