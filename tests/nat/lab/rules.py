"""Middleboxes as nftables rulesets: `wan0` outside, `lan0` inside. The kernel does everything.

A mapping that is endpoint-independent with a random port is two dynamic maps, inside address and port -> outside port
and back, filled after conntrack has chosen the port for the first packet. Filtering is a dynamic set of who may send to
which outside port. It is asked before conntrack sees a packet, so that a refused packet leaves no trace.
"""

from __future__ import annotations

from .kinds import Box, Filtering, Tcp

# as many as a carrier gives a NAT's public address, more or less; sequential ports wrap within the first few
LOWEST, HIGHEST, SEQUENTIAL = 20000, 59999, 8192

CUT, COUNT = "cut", "count"

# a box that is just starting: before conntrack, so that it learns nothing
SHUT = """
table inet shut {
  chain prerouting {
    type filter hook prerouting priority raw - 10; policy drop
  }
}"""


def cut(port: str, what: str) -> str:
    """The router that stands for the internet loses what a port carries, both ways, and nobody hears of it.

    `what`: an expression of nftables for some of the packets. In place of what the port had lost before.
    """
    return f"""{mend(port)}
table inet {CUT}-{port} {{
  chain forward {{
    type filter hook forward priority filter; policy accept
    iifname "{port}" {what} drop
    oifname "{port}" {what} drop
  }}
}}"""


def mend(port: str) -> str:
    """Ends what `cut` began."""
    # a table must be there to be deleted
    return f"table inet {CUT}-{port} {{ }}\ndelete table inet {CUT}-{port}"


def count(one: str, other: str) -> str:
    """Counters of what goes from one port to another and back."""
    return f"""
table inet {COUNT}-{one}-{other} {{
  counter there {{ }}
  counter back {{ }}
  chain forward {{
    type filter hook forward priority filter - 1; policy accept
    iifname "{one}" oifname "{other}" counter name there
    iifname "{other}" oifname "{one}" counter name back
  }}
}}"""


# chains for miniupnpd to write into; what it maps `ct status dnat` lets through
MAPPER = """
table inet mapper {
  chain to_inside { }
  chain to_outside { }
  chain opened { }
  chain pre {
    type nat hook prerouting priority dstnat; policy accept
    jump to_inside
  }
  chain post {
    type nat hook postrouting priority srcnat - 1; policy accept
    jump to_outside
  }
}"""


def ruleset(box: Box, outside: str, first: str) -> str:
    """The rules of a box whose address on wan0 is `outside`; its first host has the address `first`."""
    parts = [_firewall(box)]
    if box.engine == "masquerade":
        parts.append(_masquerade())
        if box.mapper != "none":
            parts.append(MAPPER)
    elif box.engine == "one-to-one":
        parts.append(_one_to_one(outside, first))
    elif box.engine == "tables":
        parts.append(_independent(box, outside) if box.mapping == "endpoint-independent" else _symmetric(box, outside))
    return "\n".join(parts)


_WITHOUT_UDP: dict[Tcp, str] = {
    # what networks without UDP commonly let through is web traffic
    "web": "tcp dport { 80, 443 } accept",
    "dropped": "drop",
    "rejected": "meta l4proto tcp reject with icmpx admin-prohibited",
}


def _firewall(box: Box) -> str:
    """Whoever is inside may begin what the box allows, nobody outside may; hosts inside are free among themselves."""
    unasked = "accept" if box.open_input else "drop"
    out = "meta l4proto { tcp, udp, icmp, ipv6-icmp } accept" if box.udp else _WITHOUT_UDP[box.tcp]
    return f"""
table inet firewall {{
  chain input {{
    type filter hook input priority filter; policy accept
    ct state established,related accept
    iifname "wan0" meta l4proto {{ icmp, ipv6-icmp }} accept
    iifname "wan0" {unasked}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop
    ct state established,related accept
    iifname "lan0" oifname "wan0" {out}
    iifname "lan0" oifname "lan0" accept
    ct status dnat accept
  }}
}}"""


def _masquerade() -> str:
    return """
table ip nat {
  chain post {
    type nat hook postrouting priority srcnat; policy accept
    oifname "wan0" masquerade
  }
}"""


def _one_to_one(outside: str, first: str) -> str:
    return f"""
table ip nat {{
  chain pre {{
    type nat hook prerouting priority dstnat; policy accept
    iifname "wan0" ip daddr {outside} dnat to {first}
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept
    oifname "wan0" ip saddr {first} snat to {outside}
  }}
}}"""


def _symmetric(box: Box, outside: str) -> str:
    if box.ports == "sequential":
        ports = ", ".join(f"{n} : {LOWEST + n}" for n in range(SEQUENTIAL))
        pick = f"snat ip to {outside} : numgen inc mod {SEQUENTIAL} map {{ {ports} }}"
    elif box.ports == "parity":
        return _parity(outside)
    else:
        highest = LOWEST + box.block - 1 if box.block else HIGHEST
        pick = f"snat ip to {outside}:{LOWEST}-{highest} fully-random"
    return f"""
table ip nat {{
  chain post {{
    type nat hook postrouting priority srcnat; policy accept
    oifname "wan0" meta l4proto udp {pick}
    oifname "wan0" masquerade fully-random
  }}
}}"""


def _parity(outside: str) -> str:
    lines = []
    for odd in (0, 1):
        ports = ", ".join(f"{n} : {LOWEST + 2 * n + odd}" for n in range(SEQUENTIAL // 2))
        pick = f"snat ip to {outside} : numgen inc mod {SEQUENTIAL // 2} map {{ {ports} }}"
        lines.append(f'oifname "wan0" meta l4proto udp udp sport & 1 == {odd} {pick}')
    return f"""
table ip nat {{
  chain post {{
    type nat hook postrouting priority srcnat; policy accept
    {lines[0]}
    {lines[1]}
    oifname "wan0" masquerade fully-random
  }}
}}"""


# the elements of `allowed`: of a packet from outside; of a flow that began inside, or outside; and of a host inside
# that sends to the outside address of another one, so that it is its own outside port that must be allowed
_ALLOWED: dict[Filtering, tuple[str, str, str, str, str]] = {
    "address-dependent": (
        "inet_service . ipv4_addr",
        "udp dport . ip saddr",
        "ct reply proto-dst . ct original ip daddr",
        "ct original proto-dst . ct original ip saddr",
        "ct original proto-dst . ct reply ip daddr",
    ),
    "address-and-port-dependent": (
        "inet_service . ipv4_addr . inet_service",
        "udp dport . ip saddr . udp sport",
        "ct reply proto-dst . ct original ip daddr . ct original proto-dst",
        "ct original proto-dst . ct original ip saddr . ct original proto-src",
        "ct original proto-dst . ct reply ip daddr . ct reply proto-dst",
    ),
}


def _hairpin(box: Box, outside: str) -> dict[str, str]:
    """Rules for what goes from the inside to an outside address of the inside, by the chain that has them."""
    if not box.hairpin:
        return {"pre": "", "post": "", "track": ""}
    back = 'iifname "lan0" oifname "lan0" ct status dnat'
    track = [f"{back} ct direction original jump from_inside", f"{back} ct direction reply jump to_outside"]
    if box.filtering != "endpoint-independent":
        own = _ALLOWED[box.filtering][-1]
        track.append(f"{back} ct direction original meta l4proto udp {own} != @allowed drop")
    return {
        "pre": f'iifname "lan0" ip daddr {outside} meta l4proto udp dnat ip to udp dport map @inward',
        "post": f"{back} meta l4proto udp goto translate",
        "track": "\n    ".join(track),
    }


def _independent(box: Box, outside: str) -> str:
    lasting = f"flags dynamic,timeout; timeout {box.timeout}s; size 65535"
    allowed = refuse = allow_out = allow_in = ""
    hairpin = _hairpin(box, outside)
    if box.filtering != "endpoint-independent":
        kind, packet, began_inside, began_outside, _ = _ALLOWED[box.filtering]
        allowed = f"set allowed {{ type {kind}; {lasting}; }}"
        refuse = f'iifname "wan0" ip daddr {outside} udp dport @inward {packet} != @allowed drop'
        allow_out = f"meta l4proto udp update @allowed {{ {began_inside} }}"
        allow_in = f"meta l4proto udp update @allowed {{ {began_outside} }}"
    return f"""
table ip nat {{
  map outward {{ type ipv4_addr . inet_service : inet_service; {lasting}; }}
  map inward {{ type inet_service : ipv4_addr . inet_service; {lasting}; }}
  {allowed}
  chain refuse {{
    type filter hook prerouting priority raw; policy accept
    iifname "wan0" ip daddr {outside} udp dport != @inward drop
    {refuse}
  }}
  chain pre {{
    type nat hook prerouting priority dstnat; policy accept
    iifname "wan0" ip daddr {outside} meta l4proto udp dnat ip to udp dport map @inward
    {hairpin["pre"]}
  }}
  chain translate {{
    meta l4proto udp snat ip to {outside} : ip saddr . udp sport map @outward
    meta l4proto udp snat ip to {outside}:{LOWEST}-{HIGHEST} fully-random
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept
    oifname "wan0" meta l4proto udp goto translate
    {hairpin["post"]}
    oifname "wan0" masquerade
  }}
  chain from_inside {{
    meta l4proto udp update @outward {{ ct original ip saddr . ct original proto-src : ct reply proto-dst }}
    meta l4proto udp update @inward {{ ct reply proto-dst : ct original ip saddr . ct original proto-src }}
    {allow_out}
  }}
  chain to_outside {{
    meta l4proto udp update @outward {{ ct reply ip saddr . ct reply proto-src : ct original proto-dst }}
    meta l4proto udp update @inward {{ ct original proto-dst : ct reply ip saddr . ct reply proto-src }}
    {allow_in}
  }}
  chain track {{
    type filter hook postrouting priority srcnat + 10; policy accept
    meta l4proto != udp accept
    oifname "wan0" ct direction original goto from_inside
    oifname "wan0" ct direction reply goto to_outside
    iifname "wan0" oifname "lan0" ct direction reply jump from_inside
    {hairpin["track"]}
  }}
}}"""
