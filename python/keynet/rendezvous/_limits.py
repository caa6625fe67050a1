"""What a rendezvous may spend: every bound with its reason, and the token buckets that hold the rates."""

from __future__ import annotations

import collections
import dataclasses

from .._reasons import Reason, Stage
from ..errors import InvalidArgument

__all__ = ["Buckets", "Rate", "Settings", "invalid", "port_of"]

MAX_BODY = 40 << 10
"""Bytes of a signal's body, as rendezvous.proto says: a certificate chain may take 32 KiB."""
NODE_BYTES = 32
EXCHANGE_BYTES = 16
MAX_MESSAGE = MAX_BODY + 8 * 1024
"""Bytes of a gRPC message: a body that is a little too long is answered, one that is much too long ends the stream."""
MAX_USES = 8
"""Relays that a node may say it uses, as rendezvous.proto says."""
MAX_AGENT = 100
"""Characters of a Hello's `agent` that go into a log."""


def invalid(detail: str) -> InvalidArgument:
    """The error for an option that is wrong."""
    return InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)


def port_of(address: str) -> int:
    """The port of "host:port". Raises `InvalidArgument`."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise invalid(f'{address!r} is not of the form "host:port"')
    return int(port)


@dataclasses.dataclass(frozen=True)
class Rate:
    """A token bucket: `per_second` in the long run, `burst` at once."""

    per_second: float
    burst: float

    def __post_init__(self) -> None:
        if not (self.per_second > 0 and self.burst >= 1):
            raise invalid(f"a rate needs per_second > 0 and burst >= 1, not {self}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The bounds of a rendezvous. Times are in seconds."""

    max_nodes: int = 100_000
    """Registered nodes. Beyond it newcomers are refused with RESOURCE_EXHAUSTED. docs/operations.md has the memory."""
    refresh: int = 60
    """How often a node is to say that it is there. Presence is the stream, which keynet ends within 10 s of a node's
    death; this is for a node that hangs with its sockets open."""
    expire_after: int = 3
    """So many times `refresh` without a message end a registration: two Refreshes may come late."""
    hello_timeout: float = 10.0
    """The Hello must be there by then, as `ProxyLimits::head_timeout` asks of a CONNECT."""
    write_timeout: float = 10.0
    """A node that does not take a message for so long does not read: its stream ends. Less than the 15 s of a dial."""
    queue: int = 64
    """Signals that wait for one node. More than a node's usual peers dial at once; at 4 KiB each they are 256 KiB."""
    queue_bytes: int = 512 << 10
    """Bytes of bodies that wait for one node: a dozen of the largest."""
    total_queue_bytes: int = 64 << 20
    """Bytes of bodies that wait for all nodes together; beyond it one signal waits for a node at most."""
    in_flight: int = 64
    """Signals of one node that are not yet delivered or refused; bounds what one sender makes the rendezvous hold."""
    sender: Rate = Rate(20, 60)
    """Signals from one node. A dial takes two or three, so this is a node that dials 20 others at once and goes on at
    seven a second."""
    pair: Rate = Rate(5, 20)
    """Signals from one node to one other: several dials at once, and then one or two a second."""
    receiver: Rate = Rate(100, 200)
    """Signals to one node: 30 to 50 dials a second is more than one node accepts, and five senders at their limit."""
    registrations: Rate = Rate(0.2, 5)
    """Registrations of one node: one in 5 s, which a change of networks keeps to, and a few in a row."""
    refusal_pause: float = 0.01
    """Nothing is read from a node for so long after it was refused something: a flood costs 100 messages a second."""
    max_buckets: int = 65_536
    """Rows of each table of rates. A row is dropped when its bucket is full again (seconds), and the oldest at the
    cap, which errs in its node's favour."""
    group_timeout: float = 3.0
    """How long another instance may take to hand a signal over; a third of a dial's patience is left for a retry."""
    max_group_requests: int = 4_096
    """Signals that wait for answers of other instances."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Rate) and not value > 0:
                raise invalid(f"{field.name} must be above 0, not {value}")


class Buckets:
    """Token buckets by key, in a table of bounded size. The time is the caller's."""

    __slots__ = ("_cap", "_rate", "_rows")

    def __init__(self, rate: Rate, cap: int) -> None:
        self._rate, self._cap = rate, cap
        # the least recently used first
        self._rows: collections.OrderedDict[bytes, tuple[float, float]] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, key: bytes, now: float) -> bool:
        """Takes a token, if there is one."""
        tokens = self._tokens(self._rows.get(key), now)
        taken = tokens >= 1
        self._rows[key] = (tokens - taken, now)
        self._rows.move_to_end(key)
        self._tidy(now)
        return taken

    def has(self, key: bytes, now: float) -> bool:
        """Whether `take` would succeed."""
        return self._tokens(self._rows.get(key), now) >= 1

    def _tokens(self, row: tuple[float, float] | None, now: float) -> float:
        if row is None:
            return self._rate.burst
        tokens, at = row
        return min(self._rate.burst, tokens + (now - at) * self._rate.per_second)

    def _tidy(self, now: float) -> None:
        # two for every one that comes, so that what is full goes away in time
        for _ in range(2):
            oldest = next(iter(self._rows))
            if self._tokens(self._rows[oldest], now) < self._rate.burst and len(self._rows) <= self._cap:
                return
            if len(self._rows) == 1:
                return
            del self._rows[oldest]
