"""The blocking twin of `keynet.Proxy`, for programs without asyncio (plain `grpc`, scripts, threads).

    with keynet.sync.Proxy(identity, services={50051: "127.0.0.1:50051"}, allow=[friend]) as proxy:
        with keynet.grpc.channel(proxy, friend) as channel: ...

All methods may be called from any thread. Waiting calls let other threads run, and Ctrl-C ends them.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Iterator, Sequence

from . import _keynet
from ._access import AccessCallable
from ._events import Event, _event
from ._info import PathInfo, PingReport, _ping_report
from ._node import NodeId
from ._proxy import BaseProxy
from ._repr import shown
from .errors import ForkedError, InvalidArgument, OperationCancelled, ProxyClosedError

__all__ = ["EventStream", "Forward", "Proxy"]


class Proxy(BaseProxy):
    """A node at work: the forward proxy for local clients, the reverse proxy for peers, one UDP socket."""

    def start(self) -> None:
        """Binds the sockets and begins. Raises `BindError`, `InvalidArgument`."""
        self._check_ask(self._ask)
        self._claim_start()
        try:
            core = _keynet.Proxy.start(self._identity._core, self._settings, None)
        except BaseException:
            self._unlock()
            raise
        finally:
            self._starting = False
        self._started(core, None)

    def _check_ask(self, ask: AccessCallable | None) -> None:
        if inspect.iscoroutinefunction(ask):
            raise InvalidArgument("an async allow= needs keynet.Proxy, which has an event loop; give a plain function")

    def close(self, *, drain: bool = True) -> None:
        """Ends it. `drain` lets open connections end by themselves for `drain_timeout` first; otherwise they are reset.

        Draining closes the channels that `keynet.grpc` made for this proxy, each when no call is on it. May be called
        again, and from several threads; all return when it is closed.
        """
        core = self._closing = self._ending() or getattr(self, "_closing", None)
        if core is not None:
            if drain:
                self._channels.begin()
            try:
                with self._telling(core, drain):
                    core.close(drain, None)
            finally:
                # also when Ctrl-C ends this: nobody may call it again
                self._unlock()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        # in a forked child the proxy is the parent's, which closes it
        with contextlib.suppress(ForkedError):
            self.close(drain=error is None)

    def ping(self, node_id: str, *, timeout: float = 15.0) -> PingReport:
        """Connects to the node as a client would, up to the TLS handshake, and tells what it took.

        `timeout` is in seconds. Raises the `DialError` that a client would meet; its `stage` says how far it went.
        """
        return _ping_report(self._running.ping(NodeId(node_id), timeout, None))

    def expect(self, node_id: str, *, timeout: float = 30.0) -> PathInfo:
        """Opens this node's NAT for a node that is about to dial it; returns when it has answered.

        The node's addresses must be known (`add_peer`). Raises `DialTimeout` after `timeout` seconds.
        """
        return PathInfo(**self._running.expect(NodeId(node_id), timeout, None))

    def forward(
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
        return Forward(self._running.forward(NodeId(node_id), service_port, local, list(browser_hosts), None))

    def events(self) -> EventStream:
        """What happens from this call on, until the proxy closes. Every call gives a stream of its own.

        A reader that is too slow finds an `EventsDropped` in place of the oldest.
        """
        return EventStream(self._running.subscribe(), f"of {self.node_id.short}")


class EventStream(Iterator[Event]):
    """The events of a proxy, from `Proxy.events`. Iterating waits for the next one."""

    def __init__(self, core: _keynet.EventStream, whose: str = "") -> None:
        self._core, self._whose = core, whose

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        try:
            event = self._next(None)
        except ProxyClosedError:
            # the program ends while this thread waits
            event = None
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float) -> Event | None:
        """The next event, or None when the stream has ended. Raises `TimeoutError` after `timeout` seconds."""
        try:
            return self._next(timeout)
        except OperationCancelled:
            raise TimeoutError(f"no event within {timeout} s") from None

    def _next(self, timeout: float | None) -> Event | None:
        while self._core.wait(None, timeout):
            if (raw := self._core.take()) is not None:
                return _event(*raw)
        return None

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

    def close(self) -> None:
        """Stops listening. Connections that stand go on. May be called again."""
        self._core.close(None)

    def __enter__(self) -> Forward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()
