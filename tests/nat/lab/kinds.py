"""The kinds of middleboxes, in the words of RFC 4787, and what the internet sees of a host behind some of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from .system import LabError

Mapping = Literal["endpoint-independent", "address-and-port-dependent"]
Filtering = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"]
Ports = Literal["preserved", "random", "sequential", "parity"]
Tcp = Literal["web", "dropped", "rejected"]
Mapper = Literal["none", "pcp", "upnp", "both"]
# what `masquerade` and a stateful firewall look like as long as nobody else behind them wants the same port
_INDEPENDENT: Mapping = "endpoint-independent"
_STRICT: Filtering = "address-and-port-dependent"


@dataclass(frozen=True)
class Box:
    """One middlebox."""

    engine: Literal["tables", "masquerade", "firewall", "one-to-one"] = "tables"
    """tables: the classes below, made of nftables' maps; masquerade: what Linux does; firewall: no translation;
    one-to-one: its first host has the outside address to itself, as machines of a cloud have."""
    mapping: Mapping = _INDEPENDENT
    filtering: Filtering = _STRICT
    ports: Ports = "random"
    """parity: in order too, an even port for an even one and an odd one for an odd one (RFC 4787 section 4.2.2)."""
    block: int = 0
    """Of random ports: so many are all that there are, as carriers give to a customer."""
    hairpin: bool = False
    timeout: int = 30
    """Seconds after which an unused UDP mapping goes: RFC 4787 asks for 120, many routers have 30."""
    open_input: bool = False
    """Unasked packets reach the box itself and are answered by its kernel; otherwise they are dropped."""
    mapper: Mapper = "none"
    """What a program in the box lets hosts open ports with: PCP and NAT-PMP, UPnP, or all (see mapper.py)."""
    udp: bool = True
    tcp: Tcp = "web"
    """Of TCP where `udp` is off; other than "web": hosts get out only by way of a program in the box."""
    ipv4: bool = True
    """False: hosts behind it have IPv6 alone."""
    ipv6: bool = False
    """Hosts have public IPv6 addresses, firewalled. Off, so that IPv6 cannot hide what IPv4 fails to do."""


@dataclass(frozen=True)
class Seen:
    """What the internet sees of a host: the strictest of the boxes in front of it."""

    mapping: Mapping = _INDEPENDENT
    filtering: Filtering = "endpoint-independent"
    ports: Ports = "preserved"
    udp: bool = True


_MASQUERADE = Box(engine="masquerade", ports="preserved")
# from the host outwards; a public host has none
KINDS: dict[str, tuple[Box, ...]] = {
    "none": (),
    "full-cone": (Box(filtering="endpoint-independent"),),
    "address-restricted": (Box(filtering="address-dependent"),),
    "port-restricted": (Box(),),
    "symmetric": (Box(mapping="address-and-port-dependent"),),
    "symmetric-seq": (Box(mapping="address-and-port-dependent", ports="sequential"),),
    "linux-masquerade": (_MASQUERADE,),
    "linux-open-input": (dataclasses.replace(_MASQUERADE, open_input=True),),
    "cgnat": (_MASQUERADE, Box(filtering="endpoint-independent")),
    "cgnat-symmetric": (_MASQUERADE, Box(mapping="address-and-port-dependent")),
    "firewall": (Box(engine="firewall", ports="preserved"),),
    "udp-blocked": (dataclasses.replace(_MASQUERADE, udp=False),),
}


def boxes(kind: str) -> tuple[Box, ...]:
    """The boxes of "symmetric" or "symmetric:timeout=5,hairpin=1"; options go to every box of a chain."""
    name, _, options = kind.partition(":")
    if name not in KINDS:
        raise LabError(f"no kind {name!r}; there are {', '.join(KINDS)}")
    changes = dict(_option(item) for item in options.split(",") if item)
    return tuple(dataclasses.replace(box, **changes) for box in KINDS[name])


def _option(item: str) -> tuple[str, Any]:
    name, _, text = item.partition("=")
    types = get_type_hints(Box)
    if name not in types:
        raise LabError(f"no option {name!r}; there are {', '.join(types)}")
    if types[name] is bool:
        return name, text in ("1", "yes", "true")
    if types[name] is int:
        return name, int(text)
    if text not in get_args(types[name]):
        raise LabError(f"{item}: one of {', '.join(get_args(types[name]))}")
    return name, text


def seen(kind: str) -> Seen:
    """What the internet sees of a host behind this kind, over IPv4."""
    chain = boxes(kind)
    if not chain:
        return Seen()
    mapping = max((box.mapping for box in chain), key=get_args(Mapping).index)
    filtering = max((box.filtering for box in chain), key=get_args(Filtering).index)
    ports: Ports = "preserved"
    for box in chain:
        ports = ports if box.ports == "preserved" else box.ports
    return Seen(mapping, filtering, ports, all(box.udp for box in chain))
