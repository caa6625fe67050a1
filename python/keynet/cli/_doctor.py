"""`keynet doctor`: what does this network let a node do?"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import ipaddress
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .. import _explain, _keynet, sync
from .._identity import Identity
from .._info import PingReport
from .._nat import PORT_RESTRICTED, Outlook, Prospect, prospects, unknown_prospects
from .._node import NodeId
from .._status import NatBehaviour, RelayStatus, RendezvousStatus, Status
from ..errors import CertificateExpired, DialError, DialTimeout, KeynetError, RejectedByPeer, RendezvousUnreachable
from ._common import add_finding, add_identity, finding, load_identity, positive
from ._exit import ExitCode
from ._output import Output, milliseconds
from ._words import painted

_EPILOG = """\
exit codes of doctor:
  0  a peer behind an ordinary NAT will be reached, be it over a relay, and a
     rendezvous was if one was named
  4  none of the rendezvous nodes that were named was reached
  8  no UDP comes back from anywhere, and no relay was reached: peers will not
     be reached
  9  it cannot tell: no server was named, or too few answered; name one with
     --rendezvous or --stun
"""

_BORN = datetime.datetime(2026, 11, 1, tzinfo=datetime.timezone.utc)
"""Older than this program no clock can be."""
_CLOCKS_MAY_DIFFER = 3600.0
"""Seconds between two clocks that count as right: certificates and relay credentials are good for a day."""
_CENTURY = 100 * 366 * 86_400.0
"""Seconds; what a rendezvous says of the time is cut to that."""
_LOOK_EVERY = 0.2
"""Seconds between two looks at what a node has found out by itself."""


@dataclasses.dataclass(frozen=True)
class Visit:
    """What came of reaching one rendezvous."""

    node_id: NodeId
    address: str
    ping: PingReport | None
    error: KeynetError | None
    registered: bool
    observed: str | None
    registration_error: KeynetError | None
    clock_ahead: float | None = None
    """Seconds by which its clock is ahead of this machine's, if it registered this node and said so."""

    @property
    def told(self) -> KeynetError | None:
        """What the node has found out about the address meanwhile: a closed port, a name that does not resolve."""
        return self.registration_error if isinstance(self.registration_error, RendezvousUnreachable) else None

    @property
    def over_a_relay(self) -> bool:
        """The node has registered there, although nothing goes there directly."""
        return self.registered and self.ping is None


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was found out, before it is judged."""

    discovered: dict[str, Any]
    """What `_keynet.discover` gives."""
    visits: tuple[Visit, ...] = ()
    status: Status | None = None
    """Of a temporary node with these rendezvous nodes, after a while."""
    asked_router: bool = False
    now: datetime.datetime = _BORN
    stun_error: KeynetError | None = None
    """Why the STUN servers of the user's choice could not be asked at all."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The judgement."""

    nat: NatBehaviour
    nat_by: str
    """ "stun", "rendezvous", "own address", or "nothing"."""
    global_ipv6: tuple[str, ...]
    mapped: str | None
    """The address that a router forwards to this machine."""
    asked_router: bool
    clock_is_wrong: bool
    peers: tuple[Prospect, ...]
    advice: tuple[str, ...]
    verdict: str
    exit_code: int


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "doctor",
        parents=[common],
        help="find out what this network lets a node do: NAT, IPv6, port mapping, rendezvous",
        description="Looks at this machine's addresses, asks what its NAT does, reaches the rendezvous nodes, and says "
        "in words which peers will be reached. It runs a node for some seconds, under a new name without --identity.",
        epilog=_EPILOG,
    )
    add_finding(parser)
    parser.add_argument("--timeout", type=positive, default=10.0, metavar="SECONDS", help="for each part (default 10)")
    add_identity(parser, throw_away=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Output) -> int:
    findings = look(options, out)
    report = judge(findings)
    fields = {
        "addresses": findings.discovered["addresses"],
        "gateways": findings.discovered["gateways"],
        "rendezvous": findings.visits,
        **{field.name: getattr(report, field.name) for field in dataclasses.fields(report)},
    }
    out.result({"doctor": fields}, words(findings, report))
    return report.exit_code


# -- looking ---------------------------------------------------------------------------------------------------------


def look(options: argparse.Namespace, out: Output) -> Findings:
    """Asks whatever can be asked. Takes a few times `--timeout` at most."""
    settings = finding(options)
    now = datetime.datetime.now(datetime.timezone.utc)
    identity = Identity.generate() if options.identity is None else load_identity(options.identity)
    # complains about wrong flags before anything is sent
    proxy = sync.Proxy(identity, **settings)
    if settings["stun"]:
        out.note(f"asking {', '.join(settings['stun'])} what the NAT does")
    discovered, stun_error = _discover(settings["stun"], options.timeout)
    if not settings["rendezvous"] and not settings["relays"]:
        return Findings(discovered, now=now, stun_error=stun_error)
    with proxy:
        visits = tuple(_visit(proxy, text, options.timeout, out) for text in settings["rendezvous"])
        out.note("letting a node find out what it can, with their help")
        status = _settled(proxy, settings["port_mapping"], options.timeout)
        visits = tuple(_with_registration(visit, status.rendezvous) for visit in visits)
        proxy.close(drain=False)
    return Findings(discovered, visits, status, settings["port_mapping"], now, stun_error)


def _discover(servers: list[str], timeout: float) -> tuple[dict[str, Any], KeynetError | None]:
    """Names that cannot be resolved are a finding, and no reason to end."""
    try:
        return _keynet.discover(servers, timeout, None), None
    except DialError as error:
        return _keynet.discover([], timeout, None), error


def _visit(proxy: sync.Proxy, text: str, timeout: float, out: Output) -> Visit:
    name, _, address = text.partition("@")
    node = NodeId(name)
    out.note(f"reaching the rendezvous {node.short} at {address}")
    ping, failure = None, None
    try:
        proxy.add_peer(node, [address])
        ping = proxy.ping(node, timeout=timeout)
    except KeynetError as error:
        failure = error
    return Visit(node, address, ping, failure, registered=False, observed=None, registration_error=None)


def _settled(proxy: sync.Proxy, port_mapping: bool, timeout: float) -> Status:
    """The node's status when it knows all that it wants to, or the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        status = proxy.status()
        told = status.nat is not None and status.nat.mapping != "unknown"
        registered = all(one.connected or one.error is not None for one in status.rendezvous)
        mapped = not port_mapping or _mapped(status) is not None
        relays = status.relays
        relayed = any(one.socket is not None for one in relays) or all(one.error is not None for one in relays)
        if (told and registered and mapped and relayed) or time.monotonic() >= deadline:
            return status
        time.sleep(_LOOK_EVERY)


def _with_registration(visit: Visit, rendezvous: tuple[RendezvousStatus, ...]) -> Visit:
    for one in rendezvous:
        if (one.node_id, one.address) == (visit.node_id, visit.address):
            return dataclasses.replace(
                visit,
                registered=one.connected,
                observed=one.observed,
                registration_error=one.error,
                clock_ahead=one.clock_ahead,
            )
    return visit


# -- judging ---------------------------------------------------------------------------------------------------------


def judge(findings: Findings) -> Report:
    """What follows from it. Asks nothing."""
    nat, nat_by = _nat(findings)
    mapped = None if findings.status is None else _mapped(findings.status)
    forwarded = mapped is not None and _is_public(mapped)
    peers = unknown_prospects() if nat_by == "nothing" and not forwarded else prospects(nat, forwarded=forwarded)
    exit_code, verdict = _verdict(findings, nat, nat_by, peers)
    behind = _clock_behind(findings)
    clock_is_wrong = findings.now < _BORN or behind is not None or any(map(_is_about_dates, _visit_errors(findings)))
    if clock_is_wrong:
        # what else went wrong may come from it
        verdict = f"This machine's clock is wrong: it says {findings.now:%Y-%m-%d %H:%M} UTC"
        if behind is not None:
            verdict += f", and at the rendezvous it is {findings.now + behind:%Y-%m-%d %H:%M}"
        verdict += "."
    return Report(
        nat=nat,
        nat_by=nat_by,
        global_ipv6=_global_ipv6(findings),
        mapped=mapped,
        asked_router=findings.asked_router,
        clock_is_wrong=clock_is_wrong,
        peers=tuple(peers),
        advice=tuple(_advice(findings, nat, mapped, clock_is_wrong)),
        verdict=verdict,
        exit_code=exit_code,
    )


def _clock_behind(findings: Findings) -> datetime.timedelta | None:
    """How far this machine's clock is behind those of all rendezvous nodes that tell the time; None: it is not far."""
    told = [visit.clock_ahead for visit in findings.visits if visit.clock_ahead is not None]
    # where they contradict each other, it is one of them that is wrong
    if not told or not (min(told) > _CLOCKS_MAY_DIFFER or max(told) < -_CLOCKS_MAY_DIFFER):
        return None
    # no date that is written has five digits of a year, whatever a rendezvous says
    return datetime.timedelta(seconds=max(-_CENTURY, min(_CENTURY, sorted(told)[len(told) // 2])))


def _visit_errors(findings: Findings) -> list[KeynetError]:
    errors = [error for visit in findings.visits for error in (visit.error, visit.registration_error)]
    return [error for error in errors if error is not None]


def _is_about_dates(error: KeynetError) -> bool:
    """A certificate is judged by the clock. One that was made just now has no other fault for which it is rejected."""
    return isinstance(error, CertificateExpired) or (isinstance(error, RejectedByPeer) and "xpired" in error.detail)


def _nat(findings: Findings) -> tuple[NatBehaviour, str]:
    """The best source: what servers of the user's choice said, then the node's own, then an address without a NAT."""
    raw = findings.discovered
    asked = _behaviour(raw)
    reached = any(visit.ping is not None for visit in findings.visits)
    own = findings.status.nat if findings.status is not None else None
    if asked.mapping != "unknown":
        return asked, "stun"
    if own is not None and (own.mapping != "unknown" or (own.udp_blocked and not reached)):
        return own, "rendezvous"
    # an address that differs is a NAT, whatever else is not known of it
    if asked.translated and not asked.udp_blocked:
        return asked, "stun"
    if own is not None and own.translated and not own.udp_blocked:
        return own, "rendezvous"
    if (external := _seen_elsewhere(findings)) is not None:
        summary = "NAT, mapping unknown, filtering unknown, ports unknown"
        return NatBehaviour(summary, "unknown", "unknown", "unknown", False, True, external), "rendezvous"
    public = [row["address"] for row in raw["addresses"] if ":" not in row["address"] and _is_public(row["address"])]
    in_vain = bool(findings.visits) and not reached
    if public and not asked.udp_blocked and not in_vain:
        # whether a firewall is there is not known: taken for a strict one
        summary = "none to be expected, filtering unknown"
        found = NatBehaviour(summary, "endpoint-independent", "unknown", "preserved", False, False, public[0])
        return found, "own address"
    if asked.udp_blocked and not reached:
        return asked, "stun"
    return dataclasses.replace(asked, udp_blocked=False), "nothing"


def _seen_elsewhere(findings: Findings) -> str | None:
    """The IP address that a rendezvous sees, if it is none of this machine's."""
    rows = findings.discovered["addresses"]
    own = {ipaddress.ip_address(row["address"]) for row in rows}
    for visit in findings.visits:
        if visit.observed is None or not own:
            continue
        seen = ipaddress.ip_address(visit.observed.rpartition(":")[0].strip("[]"))
        if seen.version == 4 and seen not in own:
            return str(seen)
    return None


def _behaviour(raw: dict[str, Any]) -> NatBehaviour:
    # when it was found out, whoever asks for it knows
    names = [field.name for field in dataclasses.fields(NatBehaviour) if field.name in raw]
    values = {name: raw[name] for name in names}
    return NatBehaviour(**{**values, "ports": raw["ports_detail"] or raw["ports"]})


def _verdict(findings: Findings, nat: NatBehaviour, nat_by: str, peers: list[Prospect]) -> tuple[int, str]:
    reached = [visit for visit in findings.visits if visit.ping is not None or visit.registered]
    relay = _relay_in_use(findings)
    if nat.udp_blocked and relay is None:
        return (
            ExitCode.UDP_BLOCKED,
            "This network lets no UDP through: peers will be reached over a relay only, by TCP or TLS.",
        )
    if findings.visits and not reached:
        return ExitCode.UNREACHED, "No rendezvous was reached: nodes that are known by their key alone cannot be found."
    if nat.udp_blocked and relay is not None:
        by = f"over the relay {relay.relay}, by {relay.way}"
        return ExitCode.OK, f"This network lets no UDP through: peers will be reached {by}."
    if nat_by == "nothing":
        return (
            ExitCode.UNDECIDED,
            "What the NAT does was not found out: which peers will be reached is open.",
        )
    ordinary = next(peer for peer in peers if peer.peer == PORT_RESTRICTED)
    if not ordinary.outlook.works:
        return (
            ExitCode.UNDECIDED,
            "Too little was found out about the NAT: which peers will be reached is open.",
        )
    hard = [peer.peer for peer in peers if peer.outlook is Outlook.BOTH_SYMMETRIC]
    which = "" if len(hard) > 1 else " with random ports"
    but = f", but one behind a symmetric NAT{which} only over a relay" if hard else ""
    if nat.mapping == "unknown" and nat.translated and ordinary.outlook is not Outlook.DIRECT:
        return ExitCode.OK, "A peer behind an ordinary NAT will be reached directly, or by a search among ports."
    return ExitCode.OK, f"A peer behind an ordinary NAT will be reached {ordinary.text.partition(',')[0]}{but}."


def _advice(findings: Findings, nat: NatBehaviour, mapped: str | None, clock_is_wrong: bool) -> list[str]:
    if clock_is_wrong:
        return ["Set this machine's clock (timedatectl, ntpd), then run doctor again: certificates are judged by it."]
    advice = []
    has_relay = _relay_in_use(findings) is not None
    if nat.udp_blocked:
        if has_relay:
            advice.append("For direct paths allow outgoing UDP in this network's firewall.")
        elif any(one.error is not None for one in _relays(findings)):
            # what has just failed is no advice
            advice.append(
                "Allow outgoing UDP in this network's firewall, or what leads to one of the relays: none of those that "
                "were tried was reached."
            )
        else:
            advice.append("Use a relay over TLS on port 443, or allow outgoing UDP in this network's firewall.")
    if findings.stun_error is not None:
        advice.append(f"The STUN servers were not asked: {findings.stun_error}.")
    for visit in findings.visits:
        if visit.over_a_relay:
            continue
        if visit.error is not None:
            error = visit.told or visit.error
            advice.append(f"Rendezvous {visit.node_id.short}, stage {visit.error.stage}: {_rendezvous_advice(error)}.")
        elif visit.registration_error is not None:
            advice.append(f"Rendezvous {visit.node_id.short} does not register this node: {visit.registration_error}.")
    if not has_relay:
        errors = [(one.relay, one.error) for one in _relays(findings)]
        advice += [f"Relay {name}: {_explain.advice(error)}" for name, error in errors if error is not None]
    if nat.mapping == "unknown" and nat.translated and not nat.udp_blocked:
        advice.append(
            "Whether the NAT's mapping depends on the address takes a STUN server at a second IP address to tell: "
            "name one with --stun, or give the rendezvous one (--public-stun)."
        )
    is_symmetric = nat.mapping in ("address-dependent", "address-and-port-dependent")
    if is_symmetric and mapped is None:
        relay = "" if has_relay else ", or use a relay"
        advice.append(f"The NAT is symmetric: forward a UDP port to this machine, or switch on UPnP or PCP{relay}.")
    if mapped is not None and not _is_public(mapped):
        advice.append(f"The router forwards a port, but has no public address itself ({mapped}): another NAT follows.")
    if not findings.visits:
        advice.append("Name a rendezvous (--rendezvous) to see whether peers that know only the key find this node.")
    return advice


def _rendezvous_advice(error: KeynetError) -> str:
    """For a node that is a rendezvous; and `keynet doctor`, which the error may advise, is running."""
    if isinstance(error, RendezvousUnreachable | DialTimeout):
        return "check its address and port, that it runs, and that no firewall on the way drops UDP"
    return error.advice


def _relays(findings: Findings) -> tuple[RelayStatus, ...]:
    return () if findings.status is None else findings.status.relays


def _relay_in_use(findings: Findings) -> RelayStatus | None:
    """One that carries to peers."""
    return next((one for one in _relays(findings) if one.socket is not None and not one.introduction), None)


def _mapped(status: Status) -> str | None:
    return next((one.address for one in status.addresses if one.kind == "port-mapped"), None)


def _global_ipv6(findings: Findings) -> tuple[str, ...]:
    rows = [row for row in findings.discovered["addresses"] if row["kind"] in ("network", "tunnel")]
    return tuple(row["address"] for row in rows if ":" in row["address"] and _is_public(row["address"]))


def _is_public(address: str) -> bool:
    """Of an IP address, with or without a port."""
    bare = address.rpartition(":")[0].strip("[]") if address.count(":") == 1 or "]" in address else address
    return ipaddress.ip_address(bare).is_global


# -- in words --------------------------------------------------------------------------------------------------------


def words(findings: Findings, report: Report) -> str:
    """All of it for people."""
    unread = findings.discovered.get("addresses_error")
    lines = ["addresses of this machine" + (f": cannot be read here ({unread})" if unread else "")]
    rows = [row for row in findings.discovered["addresses"] if row["kind"] != "loopback"]
    lines += [f"  {row['address']}/{row['prefix']} on {row['interface']} ({row['kind']})" for row in rows] or ["  none"]
    lines.append(f"IPv6          {_ipv6(report)}")
    lines.append(f"NAT           {_nat_words(report)}")
    lines.append(f"port mapping  {_mapping_words(report)}")
    lines += [f"rendezvous    {_visit_words(visit)}" for visit in findings.visits] or ["rendezvous    none named"]
    lines += [f"relay         {words}" for words in _relay_words(_relays(findings))] or ["relay         none known"]
    if report.clock_is_wrong:
        lines.append(f"clock         {findings.now:%Y-%m-%d %H:%M} UTC: wrong")
    lines += ["", "peers will be reached"]
    width = max(len(peer.peer) for peer in report.peers)
    lines += [f"  {peer.peer:{width}}  {peer.text}" for peer in report.peers]
    if report.global_ipv6:
        lines.append(f"  {'any with IPv6, too':{width}}  directly, unless a firewall drops UDP")
    fine = report.exit_code == ExitCode.OK and not report.clock_is_wrong
    lines += ["", painted(report.verdict, "green" if fine else "yellow", sys.stdout), *report.advice]
    return "\n".join(lines)


def _ipv6(report: Report) -> str:
    if not report.global_ipv6:
        return "no address of the internet"
    return f"{report.global_ipv6[0]}: of the internet, so that nodes that have one, too, need no NAT traversal"


def _nat_words(report: Report) -> str:
    by = {
        "stun": "",
        "rendezvous": "",
        "own address": "; this machine has an address of the internet",
        "nothing": "; name a server to ask with --stun or --rendezvous",
    }[report.nat_by]
    seen = f"; seen from outside as {report.nat.external}" if report.nat.external and not by else ""
    return f"{report.nat}{by}{seen}"


def _mapping_words(report: Report) -> str:
    if not report.asked_router:
        return "not asked for"
    return f"the router forwards {report.mapped}" if report.mapped else "no router offers it (PCP, NAT-PMP, UPnP)"


def _relay_words(relays: Sequence[RelayStatus]) -> Iterator[str]:
    reserve = "in reserve" if any(one.socket is not None for one in relays) else "no answer yet"
    for relay in relays:
        if relay.socket is not None:
            rtt = "" if relay.rtt is None else f", round trip {milliseconds(relay.rtt)}"
            use = ", leads to the rendezvous" if relay.introduction else ""
            yield f"{relay.relay}: reached by {relay.way}{rtt}{use}"
        else:
            yield f"{relay.relay}: " + (f"not reached: {relay.error}" if relay.error is not None else reserve)


def _visit_words(visit: Visit) -> str:
    head = f"{visit.node_id.short} at {visit.address}: "
    if visit.over_a_relay:
        return f"{head}registered over a relay, for directly it was not reached"
    if visit.ping is None:
        assert visit.error is not None
        error = visit.told or visit.error
        why = error.detail or error.reason.value.replace("_", " ")
        return f"{head}not reached, stage {visit.error.stage}: {why}"
    text = f"{head}round trip {milliseconds(visit.ping.rtt)}, {visit.ping.tls_version}, "
    if visit.registered:
        return text + f"registered, seen there as {visit.observed or 'nothing known'}"
    return text + (f"not registered: {visit.registration_error}" if visit.registration_error else "not registered yet")
