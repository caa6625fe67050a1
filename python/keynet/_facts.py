"""What a node knows of itself and of another, with its age: the facts of an explanation, and no conclusion."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._status import OwnAddress, PacketSize, PathExplanation, RelayStatus, RendezvousStatus
    from .errors import KeynetError


def facts(explanation: PathExplanation) -> Iterator[str]:
    """A line each."""
    now = explanation.when
    yield from (own_address(one, now) for one in explanation.own_addresses)
    nat = explanation.nat
    if nat is not None:
        elsewhere = ", in the network before this one" if nat.elsewhere else ""
        yield f"This node's NAT: {nat}{_learned(nat.learned, now)}{elsewhere}."
    yield from (rendezvous(one, now) for one in explanation.rendezvous)
    yield from (relay(one, now) for one in explanation.relays if one.since is not None or one.error is not None)
    used = next((path for path in explanation.paths if path.in_use), None)
    if used is not None and used.chosen is not None:
        yield f"Path in use: {used.address}, since {moment(used.chosen, now)}."
    if explanation.packet_size is not None and explanation.packet_size.lost is not None:
        yield packets(explanation.packet_size)
    if explanation.heard is not None:
        yield f"Last sign of life of the other node: {ago(explanation.heard, now)}."
    dial = explanation.last_dial
    if dial is not None:
        how = "it worked" if dial.error is None else failure(dial.error)
        yield f"Last dial: {ago(dial.when, now)}; {how}."


def own_address(own: OwnAddress, now: datetime.datetime | None) -> str:
    """Where the internet sees this node."""
    head = f"Own public address by {own.family}: "
    if own.known:
        confirmed = "" if own.confirmed is None else f", last confirmed {ago(own.confirmed, now)}"
        return f"{head}{', '.join(own.addresses)}, known since {moment(own.since, now)}{confirmed}."
    if own.asked is None:
        asked = "no server was asked yet"
    elif not own.servers:
        asked = "no server could be asked"
    else:
        answers = f"{own.answers} of them answered" if own.answers else "no answer"
        asked = f"asked {_count(own.servers, 'server')} {ago(own.asked, now)}, {answers}"
    before = ""
    if own.addresses and own.confirmed is not None:
        before = f"; it was {', '.join(own.addresses)}, last confirmed {ago(own.confirmed, now)}"
    return f"{head}unknown since {moment(own.since, now)}, {asked}{before}."


def rendezvous(one: RendezvousStatus, now: datetime.datetime | None) -> str:
    """How it stands with it."""
    head = f"Rendezvous {one.node_id}@{one.address}: "
    if one.connected:
        return f"{head}registered{_since(one.since, now)}."
    lost = "" if one.lost is None else f", lost {ago(one.lost, now)}"
    why = "not reached yet" if one.error is None else failure(one.error)
    return f"{head}not connected{lost}; {why}{_next_try(one.next_try, now)}."


def relay(one: RelayStatus, now: datetime.datetime | None) -> str:
    """How it stands with it."""
    head = f"Relay {one.relay}: "
    if one.socket is not None:
        addresses = f", {', '.join(one.addresses)}" if one.addresses else ""
        return f"{head}in use{_since(one.since, now)}, by {one.way}{addresses}."
    why = "" if one.error is None else f"; {failure(one.error)}"
    failed = "" if one.failed is None else f", failed {ago(one.failed, now)}"
    return f"{head}not in use{failed}{why}{_next_try(one.next_try, now)}."


def packets(size: PacketSize) -> str:
    """What the path in use does not carry."""
    fragments = ""
    if size.unproven:
        fragments = "; the MTU of the path may be even smaller, and routers cut into fragments what is sent"
    return f"Packets: UDP payloads of {size.carried} bytes get through, of {size.lost} they do not{fragments}."


def failure(error: KeynetError) -> str:
    """A failure as a clause."""
    text = error.reason.value.replace("_", " ") + (f": {error.detail}" if error.detail else "")
    return f"{text} (stage {error.stage})"


def unknown(own: Sequence[OwnAddress]) -> bool:
    """No server tells this node where it is seen, though it needs one."""
    return bool(own) and not any(one.known for one in own)


# -- moments ---------------------------------------------------------------------------------------------------------


def moment(at: datetime.datetime, now: datetime.datetime | None) -> str:
    """By the clock on the wall, and how long that is: "12:03:10 (4 min)"."""
    return f"{_clock(at, now)}{'' if now is None else f' ({duration(now - at)})'}"


def ago(at: datetime.datetime, now: datetime.datetime | None) -> str:
    """The same for a moment that nothing has lasted since: "12:03:10 (4 min ago)"."""
    return f"at {_clock(at, now)}{'' if now is None else f' ({duration(now - at)} ago)'}"


def duration(span: datetime.timedelta) -> str:
    """Roughly, in the unit that suits."""
    seconds = max(0.0, span.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _clock(at: datetime.datetime, now: datetime.datetime | None) -> str:
    local = at.astimezone()
    today = now is not None and now.astimezone().date() == local.date()
    return f"{local:%H:%M:%S}" if today else f"{local:%Y-%m-%d %H:%M:%S}"


def _since(at: datetime.datetime | None, now: datetime.datetime | None) -> str:
    return "" if at is None else f" since {moment(at, now)}"


def _learned(at: datetime.datetime | None, now: datetime.datetime | None) -> str:
    return "" if at is None else f"; found out {ago(at, now)}"


def _next_try(at: datetime.datetime | None, now: datetime.datetime | None) -> str:
    return "" if at is None or now is None or at < now else f"; tried again in {duration(at - now)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
