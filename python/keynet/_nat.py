"""With what kinds of peers a node behind a given NAT finds a path, by the classes of RFC 4787.

Mirrors rust/src/path/outlook.rs, which decides it for a real pair; this only foretells it.
"""

from __future__ import annotations

import dataclasses

from ._reasons import _Name
from ._status import NatBehaviour

__all__ = ["PEERS", "Outlook", "Prospect", "outlook", "prospects", "unknown_prospects"]


class Outlook(_Name):
    """How a meeting will go."""

    DIRECT = "direct"
    PREDICTION = "prediction"
    SEARCH = "search"
    BOTH_SYMMETRIC = "both_symmetric"
    UDP_BLOCKED = "udp_blocked"
    UNKNOWN = "unknown"

    @property
    def works(self) -> bool:
        """Whether a path is to be expected."""
        return self in (Outlook.DIRECT, Outlook.PREDICTION, Outlook.SEARCH)


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What will come of a dial, in either direction, with one kind of peer."""

    peer: str
    outlook: Outlook
    text: str


def _kind(mapping: str, filtering: str, ports: str, *, blocked: bool = False) -> NatBehaviour:
    return NatBehaviour("", mapping, filtering, ports, blocked, None, None)


_INDEPENDENT, _STRICT = "endpoint-independent", "address-and-port-dependent"

_OPEN = "no NAT, or full-cone NAT"
PORT_RESTRICTED = "port-restricted NAT"
"""What most homes and offices have: the ordinary one."""
PEERS = {
    _OPEN: _kind(_INDEPENDENT, _INDEPENDENT, "preserved"),
    "address-restricted NAT": _kind(_INDEPENDENT, "address-dependent", "preserved"),
    PORT_RESTRICTED: _kind(_INDEPENDENT, _STRICT, "preserved"),
    "symmetric NAT with ports in sequence": _kind(_STRICT, _STRICT, "sequential"),
    "symmetric NAT with random ports": _kind(_STRICT, _STRICT, "uniform"),
    "network that blocks UDP": _kind("unknown", "unknown", "unknown", blocked=True),
}
"""The kinds of peers, in the words that people know them by."""


def prospects(own: NatBehaviour, *, forwarded: bool = False) -> list[Prospect]:
    """What a node behind `own` can expect of each kind of peer; `forwarded`: a router forwards a port to it."""
    found = []
    for name, peer in PEERS.items():
        if own.mapping == "unknown" and own.translated and not (own.udp_blocked or forwarded):
            found.append(_either(name, own, peer))
            continue
        expected = outlook(PEERS[_OPEN] if forwarded and not own.udp_blocked else own, peer)
        found.append(Prospect(name, expected, _words(expected, own, peer)))
    return found


def _either(name: str, own: NatBehaviour, peer: NatBehaviour) -> Prospect:
    """There is a NAT, but servers at one address could not tell whether its mapping depends on the address."""
    better, worse = (outlook(dataclasses.replace(own, mapping=kind), peer) for kind in (_INDEPENDENT, _STRICT))
    text = _words(worse, own, peer)
    if better is worse:
        return Prospect(name, worse, text)
    if worse.works:
        return Prospect(name, worse, f"{_words(better, own, peer)}, or {text}")
    return Prospect(
        name, Outlook.UNKNOWN, f"{_words(better, own, peer).partition(',')[0]}, or {text.partition(':')[0]}"
    )


def unknown_prospects() -> list[Prospect]:
    """Where nothing at all was found out, not even whether UDP passes."""
    text = "not known: nothing was found out about this network"
    return [Prospect(name, Outlook.UNKNOWN, text) for name in PEERS]


def outlook(own: NatBehaviour, peer: NatBehaviour) -> Outlook:
    """How two meet. The same whoever dials."""
    if own.udp_blocked or peer.udp_blocked:
        return Outlook.UDP_BLOCKED
    if "unknown" in (own.mapping, peer.mapping):
        # whoever shows one port and lets in whom it has sent to, from any port, is reached from behind every NAT
        helpful = [side for side in (own, peer) if side.mapping == _INDEPENDENT and not _is_strict(side)]
        return Outlook.DIRECT if helpful else Outlook.UNKNOWN
    symmetric = [side for side in (own, peer) if side.mapping != _INDEPENDENT]
    sequential = all(side.ports.startswith("sequential") for side in symmetric)
    if len(symmetric) == 2:
        if _INDEPENDENT in (own.filtering, peer.filtering):
            return Outlook.DIRECT
        return Outlook.PREDICTION if sequential else Outlook.BOTH_SYMMETRIC
    if not symmetric or not _is_strict(own if symmetric[0] is peer else peer):
        return Outlook.DIRECT
    return Outlook.PREDICTION if sequential else Outlook.SEARCH


def _is_strict(side: NatBehaviour) -> bool:
    return side.filtering in (_STRICT, "unknown")


def _words(expected: Outlook, own: NatBehaviour, peer: NatBehaviour) -> str:
    match expected:
        case Outlook.DIRECT:
            return "directly"
        case Outlook.PREDICTION:
            return "by guessing the next port; busy NATs may need a second dial"
        case Outlook.SEARCH:
            return "by a search among ports, which takes some seconds and misses now and then"
        case Outlook.BOTH_SYMMETRIC:
            return "only over a relay: both NATs are symmetric; IPv6 or a forwarded port on one side helps"
        case Outlook.UDP_BLOCKED:
            whose = "this network" if own.udp_blocked else "its network"
            return f"only over a relay: {whose} lets no UDP through"
        case _:
            return "not known: what the NAT here does was not found out"
