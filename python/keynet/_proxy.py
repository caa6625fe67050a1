"""`Proxy`, and the half of it that never waits (`BaseProxy`), which `keynet.sync.Proxy` shares."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import types
import urllib.parse
import weakref
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from . import _keynet, _service
from ._access import AccessCallable, Allow, _Gatekeeper, _split
from ._channels import Drains
from ._events import Event, _event
from ._identity import Identity
from ._info import ConnectionInfo, Limits, PathInfo, PingReport, Priority, ProxyStats, _connection, _ping_report
from ._lock import IdentityLock
from ._node import NodeId
from ._repr import shown
from ._runtime import call
from ._service import Service
from ._status import PathExplanation, Status, _explanation, _status
from .errors import ForkedError, InvalidArgument, KeynetError, ProxyClosedError

__all__ = ["BaseProxy", "EventStream", "Forward", "Proxy"]


_OF_THE_NODE = ("relays", "rendezvous", "addresses", "own_addresses", "nat", "when")
"""What an explanation has of the node's own status."""


class BaseProxy:
    """What `keynet.Proxy` and `keynet.sync.Proxy` have in common: everything that answers at once.

    Not to be made itself; use it as the type of "either of them".
    """

    def __init__(
        self,
        identity: Identity,
        *,
        services: Mapping[int, str | Service] | None = None,
        allow: Allow | None = None,
        allow_timeout: float = 5.0,
        listen: str = "[::]:0",
        forward: str = "127.0.0.1:0",
        credentials: tuple[str, str] | None = None,
        controller: Literal["bbr", "cubic", "ledbat"] | None = None,
        rendezvous: Sequence[str] = (),
        stun: Sequence[str] = (),
        lan: bool = False,
        port_mapping: bool = True,
        search_ports: bool = True,
        relays: Sequence[str] = (),
        direct_only: bool | Collection[str] = False,
        patience: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Describes a proxy; it runs from `start` (or entering its context) until `close`.

        - `services`: what peers may reach: service port -> "host:port" or "unix:/path", or a `keynet.Service` with a
          `patience` of its own. Needs `allow`.
        - `allow`: who may: node ids, `keynet.ANYONE`, or a function `AccessRequest -> bool`, plain or async. It is
          asked off the data path; an exception, or no answer in `allow_timeout` seconds, denies.
        - `listen`: the UDP socket "address:port". "[::]:0" is IPv4 and IPv6 on a free port; nodes that are dialled need
          a known one.
        - `forward`: the address of the proxy for local clients, TCP: CONNECT, `http://` URLs and SOCKS5 (docs/http.md).
        - `credentials`: the (user, password) that local clients must send; random unless given.
        - `controller`: congestion control of uTP. BBR unless given: it keeps its rate where packets get lost; CUBIC
          shares as TCP does, LEDBAT yields to everything else.
        - `rendezvous`: nodes that introduce this one to others, by key: "<node id>@host:port" as `keynet rendezvous`
          prints it. Several may be given, and all are used at once; two nodes need one in common.
        - `stun`: "host:port" of STUN servers (RFC 8489) to ask beside those that the rendezvous nodes name.
        - `lan`: find nodes, and be found, in the local network (mDNS).
        - `port_mapping`: ask the router for a UDP port (PCP, NAT-PMP, UPnP); only with `rendezvous` or `lan`.
        - `search_ports`: where one NAT is symmetric, look for the port among many: some hundred packets a second for
          some seconds.
        - `relays`: TURN servers (RFC 8656) that carry what cannot go directly: "turn:user:password@host:3478",
          "turns:user:password@host:443" (TLS). They see ciphertext only. The rendezvous nodes may name others. Where
          nothing else gets out they are reached through the HTTP proxy that `https_proxy` in the environment names.
        - `direct_only`: use no relay, of neither side: True, or the node ids for which that holds.
        - `patience`: how many seconds of silence of a peer a connection outlives: an outage, or a laptop's lid. 75
          unless given; 300 is fine too. The more patient of the two nodes counts, up to 300 s that the other asks for;
          0: not at all. A `Service` may have its own, and so may a CONNECT (`Keynet-Patience: SECONDS`). Meanwhile
          reads wait, and so do writes when the buffers are full. That the peer is silent, `PeerLost` says after ten
          seconds all the same.
        - `limits`: see `keynet.Limits`.

        Raises `InvalidArgument` for what is out of range; some of it only on start.
        """
        if not isinstance(identity, Identity):
            raise InvalidArgument(f"identity must be a keynet.Identity, not {type(identity).__name__}")
        self._identity = identity
        core_allow, self._ask = _split(allow)
        self._settings: dict[str, Any] = {
            "services": {int(port): _service.text(service) for port, service in (services or {}).items()},
            "allow": core_allow,
            "allow_timeout": float(allow_timeout),
            "listen": listen,
            "forward": forward,
            "credentials": credentials,
            "controller": controller,
            "rendezvous": _listed("rendezvous", rendezvous, "<node id>@host:port"),
            "stun": _listed("stun", stun, "host:port"),
            "lan": bool(lan),
            "port_mapping": bool(port_mapping),
            "search_ports": bool(search_ports),
            "relays": _listed("relays", relays, "turn:user:password@host"),
            "direct_only": _direct_only(direct_only),
            "limits": {**(limits or {}), **({} if patience is None else {"patience": float(patience)})},
        }
        _keynet.check_settings(self._settings)
        self._core: _keynet.Proxy | None = None
        self._unlock_once: weakref.finalize[[], BaseProxy] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = False
        self._ended = False
        self._node_id = identity.node_id
        self._channels = Drains()

    # -- who and where -----------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        """This node's name; after `rotate` the new one."""
        return self._node_id

    @property
    def is_running(self) -> bool:
        """Whether it was started and not closed since."""
        return self._core is not None

    @property
    def forward_address(self) -> str:
        """Where the forward proxy for local clients listens: "host:port". CONNECT, `http://` URLs, SOCKS5."""
        return self._running.forward_address()

    @property
    def forward_url(self) -> str:
        """The HTTP proxy as a URL, "http://user:password@host:port". It contains the password."""
        user, password = (urllib.parse.quote(part, safe="") for part in self.credentials)
        return f"http://{user}:{password}@{self.forward_address}"

    @property
    def proxy_address(self) -> str:
        """Where the UDP socket is bound: "host:port"."""
        return self._running.proxy_address()

    @property
    def credentials(self) -> tuple[str, str]:
        """The user and password that local clients must send."""
        return self._running.credentials()

    @property
    def drain_timeout(self) -> float:
        """Seconds that open connections have to end by themselves when it closes (`limits`)."""
        return float(self._settings["limits"].get("drain_timeout", _keynet.drain_timeout()))

    # -- peers -------------------------------------------------------------------------------------------------------

    def add_peer(self, node_id: str, addresses: Sequence[str] = ()) -> None:
        """Tells where a node may be found: "host:port" or "[v6]:port"; names are resolved when it is dialled.

        Replaces what was told before. Raises `InvalidArgument` for anything unparsable.
        """
        if isinstance(addresses, str):
            raise InvalidArgument('addresses are a list: ["host:port"]')
        self._running.add_peer(NodeId(node_id), list(addresses))

    def remove_peer(self, node_id: str) -> None:
        """Forgets a node's addresses. Connections that stand go on."""
        self._running.remove_peer(NodeId(node_id))

    def disconnect(self, node_id: str) -> int:
        """Ends every open connection with a node, by any of its names; returns how many there were.

        Those to services here end with the reason `access_revoked`, which the node is told; those to its services with
        `cancelled`. The node may connect again, as far as `allow` lets it.
        """
        return self._running.disconnect(NodeId(node_id))

    def peers(self) -> dict[NodeId, tuple[str, ...]]:
        """The nodes told by `add_peer`, with their addresses."""
        return {NodeId(node): tuple(addresses) for node, addresses in self._running.peers()}

    # -- changes while it runs ---------------------------------------------------------------------------------------

    def rotate(self, identity: Identity) -> None:
        """From now on new connections show this identity; those that stand go on."""
        self._running.rotate(identity._core)
        self._identity = identity
        self._node_id = identity.node_id

    def set_service(self, port: int, backend: str | Service | None) -> None:
        """Offers a service at this port, in place of an earlier one; None takes it away. What stands goes on."""
        self._running.set_service(port, None if backend is None else _service.text(backend))

    def set_allow(self, allow: Allow, *, cut: bool = True) -> None:
        """Replaces the access list.

        Connections of nodes that are not on the new one, by any of their names, end at once: here with a
        `ConnectionClosed` whose reason is `access_revoked`, there with `AccessRevoked`. A function is asked about each
        connection that stands. With `cut=False` those go on, and the list is for new connections.
        """
        core_allow, ask = _split(allow)
        self._check_ask(ask)
        requests = self._running.set_allow(core_allow, self._settings["allow_timeout"], bool(cut))
        if requests is not None and ask is not None:
            _Gatekeeper(requests, ask, self._loop)

    # -- looking around ----------------------------------------------------------------------------------------------

    def connections(self, node_id: str | None = None) -> list[ConnectionInfo]:
        """The open connections, or those of one node (also by its older names)."""
        return [_connection(raw) for raw in self._running.connections(None if node_id is None else NodeId(node_id))]

    def set_priority(self, connection_id: int, priority: Priority | str) -> bool:
        """Moves a live connection (by `ConnectionInfo.id`) to the background, or back. False: it has ended.

        It counts for what this node sends, from now on and without a pause; the peer's node decides for what it sends.
        """
        return self._running.set_priority(connection_id, str(priority))

    def connection_by_client(self, address: str) -> ConnectionInfo | None:
        """The connection of a local client, by its "ip:port" as the forward proxy sees it."""
        raw = self._running.connection_by_client(address)
        return None if raw is None else _connection(raw)

    def connection_by_reverse(self, address: str) -> ConnectionInfo | None:
        """The connection behind what a local service sees as its peer: "ip:port", or a UNIX socket's name.

        Also answers for at least 60 s after it closed (look at `closed`: the port may serve another program by then).
        None: that peer did not come through this proxy.
        """
        raw = self._running.connection_by_reverse(address)
        return None if raw is None else _connection(raw)

    def last_error(self, node_id: str) -> KeynetError | None:
        """Why the last connection to this node failed; None if it did not."""
        return self._running.last_error(NodeId(node_id))

    def status(self) -> Status:
        """This node now: its addresses and NAT, the rendezvous nodes, the peers and the paths to them."""
        return _status(self._running.status())

    def explain(self, node_id: str) -> PathExplanation:
        """Why a node is reached as it is, or is not; `print` it.

        What was tried, what answered, why this path is the one in use, what each NAT does, and what to do next.
        """
        explained = self._running.explain(NodeId(node_id))
        status = self._running.status()
        return _explanation({**explained, **{name: status[name] for name in _OF_THE_NODE}})

    def stats(self) -> ProxyStats:
        """Counters since the start, by name."""
        return self._running.stats()

    # -- shared by both kinds ----------------------------------------------------------------------------------------

    @property
    def _running(self) -> _keynet.Proxy:
        if self._core is None:
            raise _closed("the proxy was closed" if self._ended else "the proxy was not started yet")
        return self._core

    def _check_ask(self, ask: AccessCallable | None) -> None:
        """Refuses a function that cannot be asked; the blocking twin has no loop to await one on."""

    def _claim_start(self) -> None:
        if self._starting or self._core is not None or self._ended:
            raise _closed("a proxy can be started once")
        if self._identity._file is not None:
            lock = IdentityLock.take(self._identity._file)
            if lock is not None:
                # also when nobody closes this proxy
                self._unlock_once = weakref.finalize(self, lock.release)
                self._unlock_once.atexit = False
        self._starting = True

    def _unlock(self) -> None:
        """Lets another process run with the identity: the node has ended, or has not come up."""
        if self._unlock_once is not None:
            self._unlock_once()

    def _started(self, core: _keynet.Proxy, loop: asyncio.AbstractEventLoop | None) -> None:
        self._core, self._loop = core, loop
        requests = core.access_requests()
        if requests is not None and self._ask is not None:
            _Gatekeeper(requests, self._ask, loop)
        with _lock:
            _proxies.add(self)

    def _ending(self) -> _keynet.Proxy | None:
        core, self._core = self._core, None
        self._ended = True
        with _lock:
            _proxies.discard(self)
        return core

    @contextlib.contextmanager
    def _telling(self, core: _keynet.Proxy, drain: bool) -> Iterator[None]:
        """While connections end by themselves: says what a program that seems to hang waits for."""
        timer = threading.Timer(_PATIENT_FOR, self._say_waiting, [core])
        timer.daemon = True
        if drain:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _say_waiting(self, core: _keynet.Proxy) -> None:
        with contextlib.suppress(KeynetError, RuntimeError):
            open_now = [_connection(raw) for raw in core.connections(None)]
            if open_now:
                named = [f"{one.node_id.short} service {one.service_port}" for one in open_now[:_MOST_NAMED]]
                more = f" and {len(open_now) - len(named)} more" if len(open_now) > len(named) else ""
                _log.warning(
                    "closing waits for open connections (%s%s) for %g s at most: end their calls and let go of the "
                    "call objects, or use close(drain=False) or Limits(drain_timeout=...)",
                    ", ".join(named),
                    more,
                    self.drain_timeout,
                )

    def __repr__(self) -> str:
        state = "closed" if self._ended else "not started"
        if self._core is not None:
            state = f"forward {self.forward_address}, proxy {self.proxy_address}"
        return shown(self, self.node_id.short, state)


class Proxy(BaseProxy):
    """A node at work: the forward proxy for local clients, the reverse proxy for peers, one UDP socket.

        async with keynet.Proxy(identity, services={50051: "127.0.0.1:50051"}, allow=[friend]) as proxy:
            proxy.add_peer(friend, ["198.51.100.7:4433"])

    Its coroutines belong to asyncio; the work is done on threads of the core. Cancelling an `await` cancels the work.
    The blocking twin for programs without asyncio is `keynet.sync.Proxy`.
    """

    async def start(self) -> None:
        """Binds the sockets and begins. Raises `BindError`, `InvalidArgument`."""
        self._claim_start()
        try:
            core = await call(lambda loop: _keynet.Proxy.start(self._identity._core, self._settings, loop))
        except BaseException:
            self._unlock()
            raise
        finally:
            self._starting = False
        self._started(core, asyncio.get_running_loop())

    async def close(self, *, drain: bool = True) -> None:
        """Ends it. `drain` lets open connections end by themselves for `drain_timeout` first; otherwise they are reset.

        Draining closes the channels that `keynet.grpc` made for this proxy, each when no call is on it. May be called
        again, and from several tasks; all return when it is closed. Cancelling it does not stop the closing.
        """
        core = self._closing = self._ending() or getattr(self, "_closing", None)
        if core is not None:
            if drain:
                self._channels.begin()
            try:
                with self._telling(core, drain):
                    await call(lambda loop: core.close(drain, loop))
            finally:
                # also when this is cancelled: nobody may call it again
                self._unlock()

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        # in a forked child the proxy is the parent's, which closes it; after an exception nobody waits for a drain
        with contextlib.suppress(ForkedError):
            await self.close(drain=error is None)

    async def ping(self, node_id: str, *, timeout: float = 15.0) -> PingReport:
        """Connects to the node as a client would, up to the TLS handshake, and tells what it took.

        `timeout` is in seconds. Raises the `DialError` that a client would meet; its `stage` says how far it went.
        """
        core = self._running
        return _ping_report(await call(lambda loop: core.ping(NodeId(node_id), timeout, loop)))

    async def expect(self, node_id: str, *, timeout: float = 30.0) -> PathInfo:
        """Opens this node's NAT for a node that is about to dial it; returns when it has answered.

        The node's addresses must be known (`add_peer`). Raises `DialTimeout` after `timeout` seconds.
        """
        core = self._running
        return PathInfo(**await call(lambda loop: core.expect(NodeId(node_id), timeout, loop)))

    async def forward(
        self,
        node_id: str,
        service_port: int,
        *,
        local: str = "127.0.0.1:0",
        browser_hosts: Sequence[str] = (),
    ) -> Forward:
        """Opens a local listener ("host:port" or "unix:/path") for one service of one node.

        For clients that cannot use a CONNECT proxy. It asks for no credentials: whoever reaches it uses the service.
        Ends with the proxy, or earlier by its own `close` or context. Raises `BindError`.

        HTTP/1 requests that a browser sends for a page of another site are answered with 403 here. `browser_hosts`
        are names by which pages may ask for the service, and from which they may come, beside addresses and
        `localhost`; `["*"]` carries everything.
        """
        core = self._running
        hosts = list(browser_hosts)
        return Forward(await call(lambda loop: core.forward(NodeId(node_id), service_port, local, hosts, loop)))

    def events(self) -> EventStream:
        """What happens from this call on, until the proxy closes. Every call gives a stream of its own.

        A reader that is too slow finds an `EventsDropped` in place of the oldest.
        """
        return EventStream(self._running.subscribe(), f"of {self.node_id.short}")


class EventStream(AsyncIterator[Event]):
    """The events of a proxy, from `Proxy.events`."""

    def __init__(self, core: _keynet.EventStream, whose: str = "") -> None:
        self._core, self._whose = core, whose

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while await call(self._core.wait):
            if (raw := self._core.take()) is not None:
                return _event(*raw)
        raise StopAsyncIteration

    def __repr__(self) -> str:
        return shown(self, self._whose)


class Forward:
    """A local listener for one service of one node, from `Proxy.forward`."""

    def __init__(self, core: _keynet.Forward) -> None:
        self._core = core

    @property
    def address(self) -> str:
        """Where it listens: "host:port" or "unix:/path"."""
        return self._core.address()

    def __repr__(self) -> str:
        return shown(self, self.address)

    async def close(self) -> None:
        """Stops listening. Connections that stand go on. May be called again."""
        await call(self._core.close)

    async def __aenter__(self) -> Forward:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        await self.close()


_log = logging.getLogger("keynet.proxy")
_PATIENT_FOR = 1.0
"""Seconds after which an end is long enough to say why; idle channels are closed by then."""
_MOST_NAMED = 4

# the proxies that run in this process: keynet.grpc looks up peers in them
_proxies: weakref.WeakSet[BaseProxy] = weakref.WeakSet()
_lock = threading.Lock()


def _running_proxies() -> Iterable[BaseProxy]:
    with _lock:
        return [proxy for proxy in _proxies if proxy.is_running]


def _direct_only(nodes: bool | Collection[str]) -> bool | list[str]:
    if isinstance(nodes, bool):
        return nodes
    if isinstance(nodes, str):
        raise InvalidArgument("direct_only is True, False, or a list of node ids")
    return [NodeId(node) for node in nodes]


def _listed(name: str, texts: Sequence[str], form: str) -> list[str]:
    if isinstance(texts, str):
        raise InvalidArgument(f'{name} is a list: ["{form}"]')
    return list(texts)


def _closed(detail: str) -> ProxyClosedError:
    from ._reasons import Reason, Stage

    return ProxyClosedError(reason=Reason.PROXY_CLOSED, stage=Stage.SETUP, detail=detail)
