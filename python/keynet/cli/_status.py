"""`keynet status`: look at a running node."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from .._facts import ago, moment
from .._identity import Identity
from .._node import NodeId
from .._reasons import Reason, Stage
from .._status import PeerStatus, Status
from .._status_server import StatusClient, running_sockets, socket_folders
from .._text import printable
from ..errors import ProxyClosedError
from ._common import invalid, node_id, positive
from ._output import Output, milliseconds
from ._watch import Screen, can_redraw, pause
from ._words import MAX_LINE, steady


class Rate(NamedTuple):
    """Payload bytes a second, both ways; None: connections have ended in between, and their counts with them."""

    bytes_in: float | None
    bytes_out: float | None


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "status",
        parents=[common],
        help="look at a running node: peers, paths, rendezvous nodes, NAT; or why a peer is not reached",
        description="Shows how a running `keynet up` of this user is doing or any program with a StatusServer. "
        "With NODE it explains why that node is reached as it is, or is not.",
    )
    parser.add_argument("node", metavar="NODE", nargs="?", type=node_id, help="explain the path to this node")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--identity", metavar="FILE", type=pathlib.Path, help="the node with this identity")
    which.add_argument("--socket", metavar="PATH", type=pathlib.Path, help="the node with this status socket")
    parser.add_argument("--watch", "-w", action="store_true", help="again and again, until Ctrl-C or q")
    parser.add_argument(
        "--interval", type=positive, default=1.0, metavar="SECONDS", help="between two looks (default 1)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Output) -> int:
    with StatusClient(_socket(options)) as client:
        views = _explanations(client, options) if options.node is not None else _tables(client, options)
        with contextlib.ExitStack() as stack:
            screen = None
            if options.watch:
                stack.enter_context(contextlib.suppress(KeyboardInterrupt))
                if not out.json:
                    screen = stack.enter_context(Screen())
            for fields, text in views:
                _show(fields, text, out, screen)
    return 0


def _socket(options: argparse.Namespace) -> pathlib.Path:
    if options.socket is not None:
        found: pathlib.Path = options.socket
        return found
    wanted = None if options.identity is None else Identity.load(options.identity).node_id
    sockets = running_sockets(wanted)
    if not sockets:
        which = "no node" if wanted is None else f"no node {wanted}"
        folders = ", ".join(map(str, socket_folders()))
        detail = f"{which} of this user runs here: there is no live status socket in {folders}; `keynet up` makes one"
        raise ProxyClosedError(reason=Reason.PROXY_CLOSED, stage=Stage.SETUP, detail=detail)
    if len(sockets) > 1:
        raise invalid("several nodes run here; name one: " + ", ".join(f"--socket {path}" for path in sockets))
    return sockets[0]


def _explanations(client: StatusClient, options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    while True:
        explanation = client.explain(options.node)
        yield {"explanation": explanation, "text": explanation.text}, explanation.text
        if not options.watch or pause(options.interval):
            return


def _tables(client: StatusClient, options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    """Rates need two looks."""
    before, looked = client.status(), time.monotonic()
    if not before.peers and not options.watch:
        yield {"status": before, "rates": {}}, table(before, {})
        return
    if options.watch:
        yield {"status": before, "rates": {}}, table(before, {})
    while True:
        if not options.watch:
            time.sleep(options.interval)
        elif pause(options.interval):
            return
        now, then = client.status(), time.monotonic()
        rates = compare(before, now, then - looked)
        named = {node: rate._asdict() for node, rate in rates.items()}
        yield {"status": now, "rates": named}, table(now, rates)
        if not options.watch:
            return
        before, looked = now, then


def _show(fields: dict[str, Any], text: str, out: Output, screen: Screen | None) -> None:
    if screen is not None and can_redraw():
        screen.draw(f"{steady(text)}\n\nq ends")
        return
    out.result(fields, text if screen is None else f"{text}\n")


def compare(before: Status, now: Status, seconds: float) -> dict[NodeId, Rate]:
    """The rates between two looks, of the peers that were there at both."""
    earlier = {peer.node_id: peer for peer in before.peers}
    return {
        peer.node_id: Rate(
            _rate(earlier[peer.node_id].bytes_in, peer.bytes_in, seconds),
            _rate(earlier[peer.node_id].bytes_out, peer.bytes_out, seconds),
        )
        for peer in now.peers
        if peer.node_id in earlier
    }


def _rate(before: int, now: int, seconds: float) -> float | None:
    return (now - before) / seconds if now >= before and seconds > 0 else None


# -- the table -------------------------------------------------------------------------------------------------------


def table(status: Status, rates: dict[NodeId, Rate]) -> str:
    """All of it for people. Each line stays one, whatever others say in it."""
    return "\n".join(printable(line, MAX_LINE) for line in _lines(status, rates))


def _lines(status: Status, rates: dict[NodeId, Rate]) -> list[str]:
    lines = [
        f"node        {status.node_id}",
        f"listens at  {status.proxy_address} (UDP); forward proxy {status.forward_address}",
    ]
    for number, candidate in enumerate(status.addresses):
        lines.append(f"{'addresses' if not number else '':11} {candidate.address} ({candidate.kind})")
    lines.append(f"NAT         {_nat(status)}")
    lines += _rendezvous(status)
    lines += _relays(status)
    if not status.peers:
        return [*lines, "", "no peers"]
    rows: list[tuple[str, ...]] = [("PEER", "PATH", "", "RTT", "HEARD", "CONNECTIONS", "IN", "OUT")]
    introducing = {one.node_id for one in status.rendezvous}
    for peer in status.peers:
        name = peer.node_id.short + (" (rendezvous)" if peer.node_id in introducing else "")
        rows += _rows(name, peer, rates.get(peer.node_id, Rate(None, None)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines.append("")
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines


def _nat(status: Status) -> str:
    if status.nat is None:
        return "not known" if status.rendezvous else "not known: no rendezvous or STUN server to ask"
    unknown = [own for own in status.own_addresses if not own.known]
    since = "".join(f"; by {own.family} it is unknown since {moment(own.since, status.when)}" for own in unknown)
    return str(status.nat) + (f"; seen as {status.nat.external}" if status.nat.external else "") + since


def _rendezvous(status: Status) -> Iterator[str]:
    for one in status.rendezvous:
        head = f"rendezvous  {one.node_id.short} at {one.address}: "
        if one.connected:
            rtt = "" if one.rtt is None else f", round trip {milliseconds(one.rtt)}"
            since = "" if one.since is None else f" since {moment(one.since, status.when)}"
            yield f"{head}registered{since}{rtt}, seen there as {one.observed or 'nothing known'}"
        else:
            lost = "" if one.lost is None else f", lost {ago(one.lost, status.when)}"
            yield head + (f"not registered{lost}: {one.error}" if one.error is not None else f"connecting{lost}")


def _relays(status: Status) -> Iterator[str]:
    reserve = "in reserve" if any(one.socket is not None for one in status.relays) else "no answer yet"
    for one in status.relays:
        head = f"relay       {one.relay}: "
        if one.socket is not None:
            use = "leads to the rendezvous" if one.introduction else f"keeps {', '.join(one.addresses)}"
            rtt = "" if one.rtt is None else f", round trip {milliseconds(one.rtt)}"
            yield f"{head}{use}, by {one.way}{rtt}; {one.bytes_in} bytes in, {one.bytes_out} out"
        else:
            yield head + (f"not in use: {one.error}" if one.error is not None else reserve)


def _rows(name: str, peer: PeerStatus, rate: Rate) -> Iterator[tuple[str, ...]]:
    numbers = (str(peer.connections), _speed(rate.bytes_in), _speed(rate.bytes_out))
    paths = sorted(peer.paths, key=lambda path: not path.in_use)
    if not paths:
        yield (name, "none", "", "", "", *numbers)
    for number, path in enumerate(paths):
        notes = ["in use"] if path.in_use else []
        notes += [] if path.proven else ["not proven"]
        notes += ["local"] if path.local else []
        notes += ["relayed"] if path.relayed else []
        rtt = "?" if path.rtt is None else milliseconds(path.rtt)
        head, tail = (name, numbers) if number == 0 else ("", ("", "", ""))
        yield (head, path.address, ", ".join(notes), rtt, f"{path.heard:.1f} s ago", *tail)


def _speed(rate: float | None) -> str:
    if rate is None:
        return "?"
    for unit, size in (("MiB/s", 2**20), ("KiB/s", 2**10)):
        if rate >= size:
            return f"{rate / size:.1f} {unit}"
    return f"{rate:.0f} B/s"
