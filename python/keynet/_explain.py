"""Paths, meetings and NATs in words, for people. Nothing here asks anything: it only speaks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import _facts, _obstacle
from ._facts import failure as _failure
from ._reasons import Reason, Stage

if TYPE_CHECKING:
    from ._status import Candidate, Meeting, PathExplanation, PathStatus, RelayStatus
    from .errors import KeynetError

_LISTED = 8
"""Addresses that a line names; further ones are counted. A search tries hundreds."""

_ADVICE = {
    Reason.BOTH_SYMMETRIC: "No punching gets through two such NATs. Give one of the nodes a relay (`relays=`, or a "
    "rendezvous that runs one: `keynet rendezvous --relay`), forward a UDP port to one of them in its router (and give "
    "that node `listen=` with that port), switch on UPnP or PCP there, or use IPv6 on both sides.",
    Reason.PEER_LOST: "Its machine, or the network in between, has stopped answering. Connections that are open go "
    "on when it answers again; `keynet status` shows since when nothing was heard.",
    Reason.RELAY_UNREACHABLE: "Check that the relay runs, and its address. Where UDP is blocked it is reached by "
    "TCP or TLS only: give `turns:` with port 443 as well.",
    Reason.RELAY_REFUSED: "Check the user and the password of the relay; its operator can tell about quotas.",
    Reason.PEER_OFFLINE: "Run `keynet status` on its machine: it must show one of this node's rendezvous nodes as "
    "connected. A node that has just started, or whose network was away, registers within seconds: dial again.",
    Reason.UDP_BLOCKED: "Use a relay over TLS (`turns:USER:PASSWORD@HOST:443` in `relays=`, or a rendezvous that runs "
    "one: `--relay-tls` with port 443), or allow outgoing UDP in this network's firewall. Where an HTTP proxy is the "
    "only way out, name it in `https_proxy`. `keynet doctor` shows what passes.",
    Reason.RENDEZVOUS_UNREACHABLE: "Check that the rendezvous runs and that its address is right, then UDP to it: "
    "`keynet doctor --rendezvous NODE@HOST:PORT` names the stage that fails.",
    Reason.RENDEZVOUS_BUSY: "Try again in some seconds; name a second rendezvous if it stays so.",
    Reason.UNKNOWN_NODE: "Give both nodes the same rendezvous (`rendezvous=`, `--rendezvous`), or tell this one an "
    "address of the other (`add_peer`).",
}

_REFUSING_PROXY = (
    "The HTTP proxy that `https_proxy` names does not let this node out to the relay. If it said 407, put the user and "
    "the password that it wants into `https_proxy` (http://USER:PASSWORD@HOST:PORT). If it said something else, ask "
    "whoever runs it to let CONNECT to the relay pass; to port 443 (`turns:`) most do."
)
_SMALL_MTU = (
    "Raise the MTU of what is between the two (a tunnel, a VPN) to 1260 bytes or more, or let IP fragments pass there. "
    "A relay over TCP or TLS (`turns:` in `relays=`) does without: TCP cuts its packets as small as the path wants."
)
_FULL_PACKETS_LOST = re.compile(r"small packets get there and full ones do not")
_PROXY_SAID = re.compile(r"the HTTP proxy \S+: 4\d\d\b")
"""In the detail of an error, where the core has put it. After 5xx it is the relay that was not reached."""


def describe(explanation: PathExplanation) -> str:
    """The text of a `PathExplanation`."""
    lines = [_headline(explanation), *_facts.facts(explanation)]
    lines += _paths(explanation)
    if explanation.known_addresses:
        lines.append(f"Known addresses: {_some(explanation.known_addresses)}.")
    if explanation.meeting is not None:
        lines += _meeting(explanation.meeting)
    cause = explanation.cause
    used = _used(explanation.paths)
    if cause is not None:
        lines.append(f"What went wrong: {_failure(cause)}.")
        if (why := _missed(cause, explanation)) is not None:
            lines.append(f"Why: {why.cause}.")
        lines.append(f"What to do: {_advice(cause, explanation)}")
    elif used is not None and used.relayed and explanation.connected:
        lines += _why_relayed(explanation)
    elif explanation.connected and explanation.last_error is not None:
        lines.append(f"The last connection failed all the same: {_failure(explanation.last_error)}.")
        lines.append(f"What to do: {advice(explanation.last_error)}")
    elif _is_unknown(explanation):
        lines.append(f"What to do: {_ADVICE[Reason.UNKNOWN_NODE]}")
    return "\n".join(lines)


def nat(summary: str) -> str:
    """What a NAT does, from the line that the core sums it up in."""
    if summary == _obstacle.BLOCKED:
        return "nothing comes back by UDP: it is blocked"
    found = _SUMMARY.fullmatch(summary)
    if found is None:
        return summary
    kind, mapping, filtering, ports = found.groups()
    lets_in = _LETS_IN.get(filtering, "")
    if kind == "no NAT":
        return "no NAT" + {"": "", _ANYBODY: " and no firewall"}.get(lets_in, f"; a firewall{lets_in}")
    if mapping == "unknown":
        return "what its NAT does is not known" if kind == "NAT" else "whether there is a NAT is not known"
    if mapping == "endpoint-independent":
        return "a NAT that shows one port to everybody" + (f",{lets_in}" if lets_in else "")
    how = next((words for name, words in _PORTS.items() if ports.startswith(name)), "")
    return f"a symmetric NAT: it shows each destination another port{how}" + (f",{lets_in}" if lets_in else "")


_FIRST_RELAY = 0x8000
"""`PathStatus.socket` of the first path through a relay of this node."""
_SUMMARY = re.compile(r"(no NAT|NAT|NAT unknown), mapping ([a-z-]+), filtering ([a-z-]+), ports (.+)")
_ANYBODY = " that lets anybody in"
_LETS_IN = {
    "endpoint-independent": _ANYBODY,
    "address-dependent": " that lets in machines it has sent to, from any port",
    "address-and-port-dependent": " that lets in only the very address and port it has sent to",
}
_PORTS = {
    "sequential": ", counting, so that the next one can be guessed",
    "block": " out of a known range",
    "uniform": " at random",
}


def _headline(explanation: PathExplanation) -> str:
    name = explanation.node_id
    used = _used(explanation.paths)
    if explanation.connected and used is not None:
        how = f"over a relay, at {used.address}" if used.relayed else f"at {used.address}"
        return f"{name} is reached {how}{_round_trip(used.rtt)}."
    if explanation.connected:
        return f"{name} is connected."
    if explanation.meeting is not None and explanation.meeting.outcome == "running":
        return f"{name} is not connected yet; a meeting goes on."
    if _is_unknown(explanation):
        return f"{name} is not connected: no address of it is known, and nobody was asked for it."
    return f"{name} is not connected."


def _is_unknown(explanation: PathExplanation) -> bool:
    known = explanation.paths or explanation.known_addresses or explanation.meeting or explanation.last_error
    return not (explanation.connected or known)


def _used(paths: Sequence[PathStatus]) -> PathStatus | None:
    return next((path for path in paths if path.in_use), None)


# -- why this path ---------------------------------------------------------------------------------------------------


def _paths(explanation: PathExplanation) -> Iterator[str]:
    paths = explanation.paths
    used = _used(paths)
    if used is not None:
        found = "" if used.relayed else _credit(used, explanation.meeting)
        yield f"Why this path: {_why(used, [path for path in paths if path.proven])}{found}."
    if used is not None and used.relayed:
        yield f"Which relay: {_which(explanation.relay, used, explanation.meeting)}."
    others = [path for path in paths if path is not used]
    for path in others[:_LISTED]:
        yield f"  another: {path.address}{_round_trip(path.rtt)}, {_standing(path)}"
    if len(others) > _LISTED:
        yield f"  and {len(others) - _LISTED} more"


def _why(used: PathStatus, proven: Sequence[PathStatus]) -> str:
    others = [path for path in proven if path is not used]
    if not used.proven:
        return "it was told, and has not proved to be the node yet"
    if used.relayed:
        return "no direct path has answered, so a relay carries everything; a direct one is looked for now and then"
    if others and all(path.relayed for path in others):
        return "it is direct, and the others go over relays"
    if not others:
        return "it is the only one that answered" + (", and it stays in the local network" if used.local else "")
    if used.local and not all(path.local for path in others):
        return "it stays in the local network, and the others do not"
    known = [path.rtt for path in others if path.rtt is not None]
    if used.rtt is not None and known and used.rtt <= min(known):
        return f"of the {len(others) + 1} that answered it has the shortest round trip"
    if used.rtt is not None and known:
        return "another is quicker just now, but by too little, or for too short a time, to change"
    return f"it is one of {len(others) + 1} that answered; their round trips are not known yet"


def _credit(used: PathStatus, meeting: Meeting | None) -> str:
    """By what a direct path was found that no address of the two led to."""
    if meeting is None or meeting.outcome != "met" or meeting.outlook not in ("search", "prediction"):
        return ""
    told = any(one.address == used.address for one in meeting.peer_candidates)
    if told and used.socket == 0:
        return ""
    how = (
        "a search among the ports of the symmetric NAT"
        if meeting.outlook == "search"
        else "a guess of the NAT's next port"
    )
    return f"; {how} found it" + (f", with {meeting.pings} pings" if meeting.pings else "")


def _which(relay: RelayStatus | None, used: PathStatus, meeting: Meeting | None) -> str:
    if relay is None and used.socket >= _FIRST_RELAY:
        return "one of this node's that another has taken the place of"
    if relay is None:
        return f"the other node's, at {used.address.rpartition(':')[0]}"
    blocked = meeting is not None and meeting.own_nat == _obstacle.BLOCKED and relay.transport != "udp"
    why = ", as no UDP passes here" if blocked else ""
    return f"this node's, {relay.relay}, by {relay.way}{_round_trip(relay.rtt)}{why}"


def _standing(path: PathStatus) -> str:
    where = ", over a relay" if path.relayed else ", in the local network" if path.local else ""
    if not path.proven:
        return f"not proven{where}"
    return f"proven, heard from {path.heard:.0f} s ago{where}"


# -- the meeting -----------------------------------------------------------------------------------------------------


def _meeting(meeting: Meeting) -> Iterator[str]:
    who = "this node asked for it" if meeting.role == "dialler" else "the other node asked for it"
    took = "" if meeting.took is None else f" after {_duration(meeting.took)}"
    how = {"met": f"they met{took}", "failed": f"it failed{took}"}.get(meeting.outcome, "it goes on")
    yield f"Meeting through a rendezvous at {meeting.when.astimezone():%Y-%m-%d %H:%M:%S}: {who}; {how}."
    if meeting.own_nat is not None:
        yield f"  this node:  {nat(meeting.own_nat)}"
    yield f"              at {_candidates(meeting.own_candidates)}"
    if meeting.peer_nat is None and not meeting.peer_candidates:
        yield "  the other:  said nothing of itself"
    else:
        yield f"  the other:  {nat(meeting.peer_nat) if meeting.peer_nat else 'nothing is known of its NAT'}"
        yield f"              at {_candidates(meeting.peer_candidates)}"
    if meeting.relayed:
        yield "  path:       over a relay, when they met"
    elif meeting.direct_only:
        yield "  relays:     none, for one side wants direct paths only (`direct_only`)"
    if meeting.outlook is not None:
        yield f"  outlook:    {_outlook(meeting, meeting.outlook)}"
    if meeting.tried:
        yield f"  tried:      {_some(meeting.tried)}" + (f", with {meeting.pings} pings" if meeting.pings else "")
    answers = [f"{one.address}{_round_trip(one.rtt)}" for one in meeting.answered]
    yield f"  answered:   {_some(answers)}"
    if meeting.heard:
        yield f"  heard from: {_some(meeting.heard)}"


_OUTLOOK = {
    "direct": "the addresses that they told each other should do",
    "prediction": "a NAT's next port has to be guessed",
    "search": "one of many ports of a symmetric NAT has to be found, which takes some seconds",
    "both_symmetric": "hopeless by punching: both NATs are symmetric and cannot be predicted",
}


def _outlook(meeting: Meeting, outlook: str) -> str:
    obstacle = _obstacle.find(meeting)
    if outlook == "direct" and obstacle is not None:
        return f"nothing goes directly: {obstacle.cause}"
    return _OUTLOOK.get(outlook, outlook)


# -- causes, and what to do --------------------------------------------------------------------------------------------


def _why_relayed(explanation: PathExplanation) -> Iterator[str]:
    meeting = explanation.meeting
    if meeting is None:
        yield "Why not directly: no meeting with the other node is on record here; the other one may know more."
        return
    if meeting.outcome == "running":
        yield "Why not directly: a direct path is being looked for just now."
        return
    obstacle = _obstacle.after_silence(meeting)
    yield f"Why not directly: {obstacle.cause}."
    yield f"What to do for a direct path: {obstacle.advice}."


def _missed(error: KeynetError, explanation: PathExplanation) -> _obstacle.Obstacle | None:
    """What a failed meeting, or what this node knows of itself, shows of the cause, beyond the error."""
    meeting = explanation.meeting
    if error.reason not in _OF_A_MEETING:
        return None
    if meeting is not None and error is meeting.error:
        return _obstacle.after_silence(meeting)
    return _obstacle.UNKNOWN_HERE if _facts.unknown(explanation.own_addresses) else None


_OF_A_MEETING = (Reason.PUNCH_TIMEOUT, Reason.CONNECT_TIMEOUT)


def _advice(error: KeynetError, explanation: PathExplanation) -> str:
    if (missed := _missed(error, explanation)) is not None:
        return f"{missed.advice}.{_about_relays(explanation)}"
    if error.reason is Reason.PEER_OFFLINE and (away := [one for one in explanation.rendezvous if not one.connected]):
        names = _some([f"{one.node_id}@{one.address}" for one in away])
        return f"It may be registered where this node is not connected now: {names}. {advice(error)}"
    return advice(error)


def _about_relays(explanation: PathExplanation) -> str:
    """For a pair that met neither directly nor over a relay."""
    if explanation.meeting is not None and explanation.meeting.direct_only:
        return ""
    failed = [relay for relay in explanation.relays if relay.socket is None and relay.error is not None]
    if failed:
        return f" {advice(failed[0].error)}" if failed[0].error is not None else ""
    if not explanation.relays:
        return (
            " Or give one of the two a relay (`relays=`, or a rendezvous that runs one: `keynet rendezvous --relay`)."
        )
    return ""


def advice(error: KeynetError) -> str:
    """What to do about an error, in a sentence or some."""
    if _PROXY_SAID.search(error.detail or ""):
        return _REFUSING_PROXY
    if _FULL_PACKETS_LOST.search(error.detail or ""):
        return _SMALL_MTU
    if error.reason is Reason.TOO_MANY_CONNECTIONS and error.stage in (Stage.RENDEZVOUS, Stage.PUNCH):
        return "This node has as many meetings under way as it may have at once: dial again in some seconds."
    return _ADVICE.get(error.reason) or _sentence(error.advice)


# -- small things ----------------------------------------------------------------------------------------------------


def _candidates(candidates: Sequence[Candidate]) -> str:
    return _some([f"{one.address} ({one.kind})" for one in candidates])


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return (", ".join(items[:_LISTED]) or "none") + more


def _round_trip(seconds: float | None) -> str:
    return "" if seconds is None else f" (round trip {_duration(seconds)})"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
