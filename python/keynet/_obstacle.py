"""What keeps two nodes from a direct path, as far as the facts tell, and what whoever reads it can do.

Where the facts name no cause, none is named.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._status import Candidate, Meeting

BLOCKED = "UDP is blocked"
"""`NatBehaviour.summary` of a node whose network lets no UDP back in."""
_OUTSIDE = ("server-reflexive", "port-mapped", "peer-reflexive")

_LISTED = 4
"""Addresses of a node that are named."""

_FORWARD = "Forward a UDP port to one of the two nodes in its router"
_RELAY_HERE = (
    "Use a relay over TLS (`turns:USER:PASSWORD@HOST:443` in `relays=`, or a rendezvous that runs one: `--relay-tls` "
    "with port 443), or allow outgoing UDP in this network's firewall. `keynet doctor` shows what passes"
)


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """What is in the way."""

    cause: str
    """A clause."""
    advice: str
    """A sentence or some, without the last full stop."""


UNKNOWN_HERE = Obstacle(
    "this node does not know its own public address now, so it cannot tell the other where to send",
    "Check that its rendezvous or a STUN server answers by UDP (`keynet doctor` names them and what they say), then "
    "dial again",
)
"""Of a node, whatever was tried."""


def find(meeting: Meeting) -> Obstacle | None:
    """By what the two nodes told each other; None: nothing of it stands in the way of a direct path."""
    return (
        _without_udp(meeting) or _without_address(meeting) or _without_family(meeting) or _same_nat(meeting)
    ) or _symmetric(meeting)


def after_silence(meeting: Meeting) -> Obstacle:
    """Why a meeting that should have led to a direct path did not: by what arrived of the other, and what did not."""
    if (obstacle := find(meeting)) is not None:
        return obstacle
    if meeting.heard and not meeting.answered:
        return Obstacle(
            "the other's pings arrive here, and nothing that this node sends is answered",
            "A firewall on the other's side, or in between, drops what this node sends. Let UDP pass there, or forward "
            "a UDP port to this node",
        )
    silent = "" if meeting.heard else ", and no ping of the other arrived here: it may not have taken part"
    if meeting.outlook == "search":
        return Obstacle(
            f"a search among the ports of a symmetric NAT did not find the right one{silent}",
            f"Dial again, as a search finds the port nearly always but not every time. {_FORWARD}, and none is needed",
        )
    if meeting.outlook == "prediction":
        return Obstacle(
            f"the port that the symmetric NAT would use next was guessed wrong{silent}",
            f"Dial again: others may use the same NAT. {_FORWARD}, and no guess is needed",
        )
    return Obstacle(
        "nothing in what both told of their NATs keeps them apart" + (silent or ", yet no answer led to a path"),
        "Check that the other node still runs, then run `keynet doctor` on both sides and look for a firewall that "
        f"drops UDP. {_FORWARD} if it stays so",
    )


def _without_udp(meeting: Meeting) -> Obstacle | None:
    if meeting.own_nat == BLOCKED:
        return Obstacle("no UDP comes back in this node's network, so nothing goes directly", _RELAY_HERE)
    if meeting.peer_nat == BLOCKED:
        return Obstacle(
            "the other node says that no UDP comes back in its network, so nothing goes directly",
            "A relay carries it meanwhile if one of the two has one. Whoever runs the other node can allow outgoing "
            "UDP in its network",
        )
    return None


def _without_address(meeting: Meeting) -> Obstacle | None:
    """A node that does not know where the internet sees it can tell nobody."""
    if not meeting.peer_candidates and meeting.peer_nat is None:
        return None
    if not public(meeting.own_candidates) and _untranslated(meeting.own_nat):
        return _private(meeting)
    if not public(meeting.own_candidates):
        return Obstacle(
            "this node did not know its own public address then, so the other could not send to it",
            "Check that its rendezvous or a STUN server answers by UDP (`keynet doctor` names them and what they say), "
            "then dial again",
        )
    if not public(meeting.peer_candidates) and _untranslated(meeting.peer_nat):
        return Obstacle(
            f"the other node is in a private network, at {_hosts(meeting.peer_candidates)}, without a NAT between it "
            "and its rendezvous: no public address of it is known",
            "Give it a rendezvous or a STUN server on the internet, so that it learns its public address, or connect "
            "the two networks (a route, a VPN)",
        )
    if not public(meeting.peer_candidates):
        return Obstacle(
            "the other node told no public address: it did not know its own then",
            "Dial again in some seconds; if it stays so, run `keynet doctor` on the other node's machine",
        )
    return None


def _private(meeting: Meeting) -> Obstacle:
    """This node's servers see it at the address that it has, which is a private one."""
    own = _hosts(meeting.own_candidates)
    if public(meeting.peer_candidates):
        return Obstacle(
            f"this node is in a private network, at {own}, without a NAT between it and its rendezvous: no public "
            "address of it is known, and the other has a public one",
            "Give this node a rendezvous or a STUN server on the internet, so that it learns its public address",
        )
    return Obstacle(
        f"both are in private networks, this node at {own}, the other at {_hosts(meeting.peer_candidates)}, without a "
        "NAT between them and their rendezvous, and what one sends to the other does not arrive",
        "Check with whoever runs these networks that there is a route both ways (`ping` from one address to the other) "
        "and that no firewall in between drops UDP; or give one of the two nodes a relay that both reach",
    )


def _untranslated(nat: str | None) -> bool:
    """Its servers see the node at its own address."""
    return nat is not None and nat.startswith("no NAT")


def _hosts(candidates: Iterable[Candidate]) -> str:
    return ", ".join(sorted({_ip(one.address) for one in candidates if one.kind == "host"})[:_LISTED]) or "no address"


def _without_family(meeting: Meeting) -> Obstacle | None:
    own, peer = _families(meeting.own_candidates), _families(meeting.peer_candidates)
    if own and peer and not own & peer:
        return Obstacle(
            f"this node has public addresses of {_named(own)} only, the other of {_named(peer)} only",
            "Only a relay that has both carries between them. Give one of the two such a relay, or the address "
            "that it lacks",
        )
    return None


def _same_nat(meeting: Meeting) -> Obstacle | None:
    own, peer = (
        {_ip(one.address) for one in candidates if one.kind == "server-reflexive"}
        for candidates in (meeting.own_candidates, meeting.peer_candidates)
    )
    if own & peer and meeting.outcome != "met":
        return Obstacle(
            f"both are behind the same NAT ({', '.join(sorted(own & peer))}), which does not send packets back inside",
            "Reach the other in the local network (`lan=True` on both sides). Where it is a carrier's NAT, forwarding "
            "a port at home does not help, and a relay or IPv6 does",
        )
    return None


def _symmetric(meeting: Meeting) -> Obstacle | None:
    if meeting.outlook != "both_symmetric":
        return None
    return Obstacle(
        "both NATs show each destination another port, in an order that cannot be predicted",
        "Forward a UDP port to one of the nodes in its router (and give that node `listen=` with that port), switch on "
        "UPnP or PCP there, or use IPv6 on both sides",
    )


def public(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that lead to the node from the internet."""
    return [one for one in candidates if one.kind in _OUTSIDE or (one.kind == "host" and _is_global(one.address))]


def _families(candidates: Iterable[Candidate]) -> set[int]:
    return {4 if "." in _ip(one.address) else 6 for one in public(candidates)}


def _named(families: Iterable[int]) -> str:
    return " and ".join(f"IPv{family}" for family in sorted(families))


def _is_global(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(_ip(address).partition("%")[0])
    except ValueError:
        return False
    # the prefixes of documentation count as addresses of the internet: laboratories and examples use them
    return parsed.is_global or any(parsed in network for network in _DOCUMENTATION if network.version == parsed.version)


_DOCUMENTATION: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
    ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def _ip(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
