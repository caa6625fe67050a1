"""What a rendezvous may spend: every bound with its reason, and the token buckets that hold the rates."""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import math

from .._keynet import excerpt
from .._reasons import Reason, Stage
from .._text import whole
from ..errors import InvalidArgument

__all__ = ["Buckets", "Pace", "Rate", "Settings", "invalid", "network_of", "port_of"]

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


def port_of(address: str, what: str) -> int:
    """The port of "host:port". Raises `InvalidArgument`, about the argument `what`."""
    host, colon, port = address.rpartition(":")
    number = whole(port)
    if not (host and colon) or number is None or not 0 < number < 65536:
        raise invalid(f'{what}: "{excerpt(address)}" is not of the form "host:port"')
    return number


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
    """Registered nodes. Beyond it a newcomer takes the place of the newest node of the network that has the most, if
    its own has fewer by two at least, and else is refused (RESOURCE_EXHAUSTED). docs/operations.md has the memory."""
    network_share: float = 0.125
    """How much of `max_nodes` one network may have (an IPv4 /24, an IPv6 /48), but `network_least` in any case:
    carriers put thousands of nodes behind a few addresses."""
    network_least: int = 256
    """Nodes that one network may have however few there may be in all."""
    max_nodes_per_socket: int = 4
    """Nodes at one address and port: a program has one, two while its key changes. The oldest gives way."""
    refresh: int = 60
    """How often a node is to say that it is there. Presence is the stream, which keynet ends within 10 s of a node's
    death; this is for a node that hangs with its sockets open."""
    expire_after: int = 3
    """So many times `refresh` without a message end a registration: two Refreshes may come late."""
    hello_timeout: float = 10.0
    """The Hello must be there by then, as `ProxyLimits::head_timeout` asks of a CONNECT."""
    write_timeout: float = 10.0
    """A node that does not take a message for so long does not read: its stream ends. Less than the 15 s of a dial."""
    queue: int = 1_024
    """Signals that wait for one node: a thousand callers at once find room. Senders take turns, and when it is full
    the one with the most in it gives way."""
    queue_bytes: int = 1 << 20
    """Bytes of bodies that wait for one node: a thousand invitations of one certificate, two dozen of the largest."""
    queue_of_sender: int = 32
    """Signals of one sender that wait for one node: what a pair may send at once is 20."""
    total_queue_bytes: int = 64 << 20
    """Bytes of bodies that wait for all nodes together; beyond it one signal waits for a node at most."""
    in_flight: int = 256
    """Signals of one node that are not yet delivered or refused; bounds what one sender makes the rendezvous hold."""
    sender: Rate = Rate(20, 100)
    """Exchanges that one node begins: a node that dials 100 others at once, and 20 a second after that. What is said in
    an exchange that was answered does not count (`exchange_words`): a node that many invite can answer them all."""
    exchange_words: int = 8
    """Signals that each side of such an exchange may send: one, and repetitions at growing intervals."""
    max_exchanges: int = 65_536
    """Exchanges that are remembered; the oldest goes, and what is said in it then counts as a beginning."""
    pair: Rate = Rate(5, 20)
    """Signals from one node to one other: several dials at once, and then one or two a second."""
    receiver: Rate = Rate(400, 400)
    """Signals to one node: as many as it looks at (`invitations_per_second`). What comes faster waits in its queue."""
    registrations: Rate = Rate(0.2, 5)
    """Registrations of one node: one in 5 s, which a change of networks keeps to, and a few in a row."""
    network_registrations: Rate = Rate(100, 1_000)
    """Registrations from one network: an office or a carrier's gateway that comes back at once, and 6,000 a minute."""
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

    @property
    def max_nodes_per_network(self) -> int:
        """What follows from `network_share` and `network_least`."""
        return max(self.network_least, int(self.max_nodes * self.network_share))


def network_of(address: str) -> str:
    """The network that an "ip:port" is counted with: the IPv4 /24 or IPv6 /48; of what is no address, itself."""
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))


class Pace:
    """Spreads what goes to one receiver over time. The time is the caller's."""

    __slots__ = ("_burst", "_free_at", "_spacing")

    def __init__(self, rate: Rate) -> None:
        self._spacing, self._burst = 1 / rate.per_second, (rate.burst - 1) / rate.per_second
        self._free_at = -math.inf

    def delay(self, now: float) -> float:
        """Takes the next moment; says how many seconds there are until then."""
        at = max(self._free_at, now - self._burst)
        self._free_at = at + self._spacing
        return max(0.0, at - now)


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
