"""Helpers for gRPC (needs grpcio: `pip install 'pykeynet[grpc]'`).

Nothing here is needed to use gRPC through keynet: the public channel option
`("grpc.http_proxy", proxy.forward_url)` with the target "<node id>.keynet:<port>" does it too. These helpers are
immune to the proxy settings of the environment, set sensible reconnect times, tell a servicer who calls, and say in
words why a call failed.

    async with keynet.grpc.aio_channel(proxy, node_id) as channel:            # client
        await GreeterStub(channel).SayHello(request)

    server = grpc.server(pool, interceptors=[keynet.grpc.server_interceptor()])   # server
    keynet.grpc.peer(context).node_id                                          # in a servicer
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import dataclasses
import functools
import inspect
import re
import urllib.parse
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from ._channels import Calls, drain_aio
from ._extras import needed_by
from ._info import ConnectionInfo
from ._node import NodeId
from ._proxy import BaseProxy, _running_proxies
from ._reasons import Reason, Stage
from ._text import printable
from .errors import KeynetError, ProxyClosedError, RequestError

with needed_by("keynet.grpc", "grpc"):
    import grpc
    import grpc.aio

__all__ = [
    "Explanation",
    "UnknownPeer",
    "aio_channel",
    "aio_server_interceptor",
    "channel",
    "channel_options",
    "current_peer",
    "explain",
    "peer",
    "proxy_target",
    "server_interceptor",
    "server_options",
    "target",
]

Options = Sequence[tuple[str, Any]]

# gRPC gives a CONNECT 20 s whatever is set, so the core's dial ends in 15; the back-off must not cut a dial short
_DIAL_TIMEOUT_MS = 15_000

# gRPC measures the bandwidth with pings of its own, and ends the transport when one is not answered for a minute.
# Connections of keynet may outlive five minutes of silence (`patience=`); what is dead it ends itself.
_PING_TIMEOUT = ("grpc.http2.ping_timeout_ms", 310_000)


# -- client ----------------------------------------------------------------------------------------------------------


def target(node_id: str, port: int = 50051) -> str:
    """The CONNECT target of a node's service: "<node id>.keynet:<port>"."""
    return f"{NodeId(node_id)}.keynet:{port}"


def channel_options(proxy: BaseProxy, node_id: str, port: int = 50051) -> list[tuple[str, Any]]:
    """The channel arguments that `channel` and `aio_channel` use, with a channel target of `proxy_target(proxy)`.

    `no_proxy` and its kin in the environment would override gRPC's public `grpc.http_proxy` option, and a proxy URL
    there would redirect it. So the channel is pointed at the proxy itself, and the CONNECT is asked for with the
    arguments that gRPC's own proxy code sets further inside (grpcio 1.85 has them; a test watches).
    """
    _remember(proxy, NodeId(node_id))
    user, password = proxy.credentials
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    return [
        ("grpc.enable_http_proxy", 0),
        ("grpc.http_connect_server", target(node_id, port)),
        ("grpc.http_connect_headers", f"Proxy-Authorization:Basic {credentials}"),
        ("grpc.default_authority", f"{NodeId(node_id)}.keynet"),
        # gRPC waits up to 120 s between attempts by default: far too long for a peer that comes back
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 10_000),
        ("grpc.min_reconnect_backoff_ms", _DIAL_TIMEOUT_MS + 5_000),
    ]


def server_options() -> list[tuple[str, Any]]:
    """Arguments for `grpc.server(options=…)`, so that a server waits for a silent peer as long as keynet does.

    Without them gRPC itself ends a connection on which one of its pings was not answered for a minute.
    """
    return [_PING_TIMEOUT]


def _patience(options: Options) -> list[tuple[str, Any]]:
    """The same for a channel, unless its user has set a keep-alive: that decides then."""
    return [] if any(name.startswith("grpc.keepalive") for name, _ in options) else [_PING_TIMEOUT]


def proxy_target(proxy: BaseProxy) -> str:
    """The forward proxy as a gRPC target that needs no resolver: "ipv4:host:port" or "ipv6:[host]:port"."""
    address = proxy.forward_address
    return ("ipv6:" if address.startswith("[") else "ipv4:") + address


def channel(
    proxy: BaseProxy,
    node_id: str,
    port: int = 50051,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Options = (),
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """A plain `grpc.Channel` to a node's service, through the proxy.

    keynet encrypts and authenticates; without `credentials` gRPC itself adds nothing. Call credentials need
    `credentials=grpc.local_channel_credentials()`. `options` come on top of those of `channel_options` and win.

    Leaving the proxy's context in good order closes the channel when no call is on it any more.
    """
    where, arguments = (
        proxy_target(proxy),
        _merged([*channel_options(proxy, node_id, port), *_patience(options)], options),
    )
    if credentials is not None:
        plain = grpc.secure_channel(where, credentials, options=arguments, compression=compression)
    else:
        plain = grpc.insecure_channel(where, options=arguments, compression=compression)
    calls = Calls()
    made = grpc.intercept_channel(plain, _Counting(calls))
    proxy._channels.add(made, calls.drain)
    return made


def aio_channel(
    proxy: BaseProxy,
    node_id: str,
    port: int = 50051,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Options = (),
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
) -> grpc.aio.Channel:
    """A plain `grpc.aio.Channel` to a node's service, through the proxy; see `channel`."""
    where, arguments = (
        proxy_target(proxy),
        _merged([*channel_options(proxy, node_id, port), *_patience(options)], options),
    )
    if credentials is not None:
        made = grpc.aio.secure_channel(where, credentials, arguments, compression, interceptors)
    else:
        made = grpc.aio.insecure_channel(where, arguments, compression, interceptors)
    with contextlib.suppress(RuntimeError):  # made outside of a loop: nobody knows where it could be closed
        loop = asyncio.get_running_loop()
        proxy._channels.add(made, lambda channel: drain_aio(channel, loop))
    return made


class _ProxyClosed(grpc.RpcError):
    """A call on a channel whose proxy is closed, in the words of gRPC: nobody is told to catch anything else."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the keynet proxy that this channel goes through is closed"

    def __str__(self) -> str:
        return self.details()


class _Counting(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Tells how many calls are on a channel."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def _count(self, continuation: Any, details: Any, request: Any) -> Any:
        if not self._calls.began():
            raise _ProxyClosed()
        try:
            call = continuation(details, request)
        except BaseException:
            self._calls.ended()
            raise
        call.add_done_callback(self._calls.ended)
        return call

    # one function for all four kinds
    intercept_unary_unary = intercept_unary_stream = _count  # type: ignore[assignment]
    intercept_stream_unary = intercept_stream_stream = _count  # type: ignore[assignment]


# for `explain`: the nodes that channels were made for, the newest last
_asked: weakref.WeakKeyDictionary[BaseProxy, dict[NodeId, None]] = weakref.WeakKeyDictionary()
_MAX_ASKED = 1024


def _remember(proxy: BaseProxy, node_id: NodeId) -> None:
    asked = _asked.setdefault(proxy, {})
    asked.pop(node_id, None)
    asked[node_id] = None
    while len(asked) > _MAX_ASKED:
        del asked[next(iter(asked))]


def _merged(ours: Options, theirs: Options) -> list[tuple[str, Any]]:
    given = {name for name, _ in theirs}
    return [option for option in ours if option[0] not in given] + list(theirs)


# -- server: who calls? ----------------------------------------------------------------------------------------------


class UnknownPeer(LookupError):
    """The call did not come through a proxy of this process, or its connection has ended: the caller is unknown."""


# set by the interceptors: gRPC's text for the peer, and the connection behind it when the call began
_current: contextvars.ContextVar[tuple[str, ConnectionInfo] | None] = contextvars.ContextVar(
    "keynet_peer", default=None
)


def peer(
    context: grpc.ServicerContext | grpc.aio.ServicerContext[Any, Any],
    *,
    proxy: BaseProxy | None = None,
    closed: bool = False,
) -> ConnectionInfo:
    """Who is calling: the connection that the call came over; `.node_id` has proved to hold its key.

    Works in sync and aio servicers, over TCP and UNIX sockets, and looks in `proxy` or else in all running proxies
    of this process.

    Raises `UnknownPeer` for a caller that did not come through keynet: never take that for a permission. Also for one
    whose connection has ended, because its local port may belong to any local program by then; `closed=True` accepts
    it for up to 60 s, fit for logs but not for permissions. With an interceptor installed the connection is looked up
    when the call begins, and remains known for as long as the call lasts.
    """
    text = context.peer()
    captured = _current.get()
    if proxy is None and captured is not None and captured[0] == text:
        return captured[1]
    return _look_up(text, proxy, closed)


def current_peer() -> ConnectionInfo:
    """Who is calling, for code without the context at hand; needs an interceptor. Raises `UnknownPeer`."""
    captured = _current.get()
    if captured is None:
        raise UnknownPeer("no call is being served here, or the server has no keynet.grpc interceptor")
    return captured[1]


def _look_up(text: str, proxy: BaseProxy | None, closed: bool) -> ConnectionInfo:
    address = _address(text)
    ended = None
    for candidate in _running_proxies() if proxy is None else (proxy,):
        try:
            info = candidate.connection_by_reverse(address)
        except KeynetError:  # closed in between
            continue
        if info is not None and info.is_open:
            return info
        ended = info or ended
    if ended is None:
        raise UnknownPeer(f"{text} did not come through a keynet proxy of this process")
    if not closed:
        raise UnknownPeer(f"the connection from {ended.node_id} behind {text} has ended")
    return ended


def _address(text: str) -> str:
    """gRPC's name for a peer as the proxy writes it: "ipv6:%5B::1%5D:5" is "[::1]:5", UNIX names stay."""
    scheme, _, rest = text.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return urllib.parse.unquote(rest)
    return urllib.parse.unquote(text)


def server_interceptor(proxy: BaseProxy | None = None, *, required: bool = True) -> grpc.ServerInterceptor:
    """Looks up the caller when a call begins, for `peer(context)` and `current_peer()`; for `grpc.server(...)`.

    Looks in `proxy`, or else in all running proxies of this process. With `required` a call that did not come
    through keynet is refused with UNAUTHENTICATED before the servicer sees it; otherwise `peer` raises `UnknownPeer`
    in the servicer.
    """
    return _Interceptor(proxy, required)


def aio_server_interceptor(proxy: BaseProxy | None = None, *, required: bool = True) -> grpc.aio.ServerInterceptor:
    """The same for `grpc.aio.server(...)`; see `server_interceptor`."""
    return _AioInterceptor(proxy, required)


class _Lookup:
    """Finds the caller and wraps the four kinds of handlers; shared by both interceptors."""

    def __init__(self, proxy: BaseProxy | None, required: bool) -> None:
        self._proxy, self._required = proxy, required

    def capture(self, context: Any) -> tuple[str, ConnectionInfo] | None:
        text = context.peer()
        try:
            return text, _look_up(text, self._proxy, closed=False)
        except UnknownPeer:
            return None

    def refuses(self, captured: object) -> bool:
        return captured is None and self._required

    def wrap(self, handler: Any) -> Any:
        """The handler with its behaviour wrapped, of the same kind (gRPC looks at what kind of function it is)."""
        if handler is None:  # an unknown method
            return None
        kind = ("stream_" if handler.request_streaming else "unary_") + (
            "stream" if handler.response_streaming else "unary"
        )
        behaviour = getattr(handler, kind)
        wrapped: Callable[[Any, Any], Any]
        if inspect.isasyncgenfunction(behaviour):
            wrapped = self._async_generator(behaviour)
        elif inspect.iscoroutinefunction(behaviour):
            wrapped = self._coroutine(behaviour)
        elif handler.response_streaming:
            wrapped = self._generator(behaviour)
        else:
            wrapped = self._function(behaviour)
        return handler._replace(**{kind: wrapped})

    def _function(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        @functools.wraps(behaviour)
        def serve(request: Any, context: Any) -> Any:
            captured = self.capture(context)
            if self.refuses(captured):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)
            with _serving(captured):
                return behaviour(request, context)

        return serve

    def _generator(self, behaviour: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
        @functools.wraps(behaviour)
        def serve(request: Any, context: Any) -> Iterator[Any]:
            captured = self.capture(context)
            if self.refuses(captured):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)
            with _serving(captured):
                responses = iter(behaviour(request, context))
            # a generator's body runs in the context of whoever asks for the next item, each time
            try:
                while True:
                    with _serving(captured):
                        try:
                            response = next(responses)
                        except StopIteration:
                            return
                    yield response
            finally:
                close = getattr(responses, "close", None)
                if close is not None:
                    with _serving(captured):
                        close()

        return serve

    def _coroutine(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        @functools.wraps(behaviour)
        async def serve(request: Any, context: Any) -> Any:
            captured = self.capture(context)
            if self.refuses(captured):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)
            with _serving(captured):
                return await behaviour(request, context)

        return serve

    def _async_generator(
        self, behaviour: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        @functools.wraps(behaviour)
        async def serve(request: Any, context: Any) -> AsyncIterator[Any]:
            captured = self.capture(context)
            if self.refuses(captured):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)
            # each call is served by a task, so the variable needs no resetting between items
            _current.set(captured)
            async with contextlib.aclosing(behaviour(request, context)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    yield response

        return serve


_REFUSAL = "this server serves keynet nodes only"


@contextlib.contextmanager
def _serving(captured: tuple[str, ConnectionInfo] | None) -> Iterator[None]:
    token = _current.set(captured)
    try:
        yield
    finally:
        _current.reset(token)


class _Interceptor(_Lookup, grpc.ServerInterceptor):
    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return self.wrap(continuation(handler_call_details))


class _AioInterceptor(_Lookup, grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return self.wrap(await continuation(handler_call_details))


# -- why did it fail? ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a call failed, in words: `print(keynet.grpc.explain(error, proxy, node_id))`."""

    code: grpc.StatusCode
    """gRPC's own status."""
    cause: KeynetError | None
    """What went wrong on keynet's side, if something did; `cause.reason` names it."""
    http_status: int | None
    """What the forward proxy answered gRPC's CONNECT with, if gRPC told."""
    text: str

    def __str__(self) -> str:
        return self.text


def explain(error: grpc.RpcError, proxy: BaseProxy, node_id: str | None = None) -> Explanation:
    """Why a call through `proxy` failed.

    gRPC reports nearly all that goes wrong below it as UNAVAILABLE, at best with the number of an HTTP status. The
    proxy knows more: its last error with the node. Without `node_id` all nodes are considered that it was told about
    or that a channel was made for. Where no path was found, the text of `proxy.explain(node_id)` is part of it.
    """
    code, details = error.code(), error.details() or ""
    match = re.search(r"HTTP proxy returned response code (\d{3})", details)
    http_status = int(match.group(1)) if match else None
    if code not in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    ):
        return Explanation(code, None, None, f"the server was reached and answered {code.name}: {printable(details)}")
    causes = _causes(proxy, node_id, http_status)
    cause = causes[0] if len(causes) == 1 else None
    if causes:
        text = f"{code.name}, because the connection failed: {' | or: '.join(map(str, causes))}"
        if cause is not None and cause.node_id is not None and cause.reason in _OF_THE_PATH:
            text += "\n" + _path_in_words(proxy, cause.node_id)
    elif http_status is not None:
        text = f"{code.name}: the forward proxy answered {http_status}; {_guess(http_status)}"
    else:
        seen = "the proxy has seen no connection with the node fail"
        text = f"{code.name}: {printable(details) or 'no details'}; {seen}"
    return Explanation(code, cause, http_status, text)


_OF_THE_PATH = (
    Reason.PEER_LOST,
    Reason.PUNCH_TIMEOUT,
    Reason.RENDEZVOUS_UNREACHABLE,
    Reason.PEER_OFFLINE,
    Reason.UDP_BLOCKED,
    Reason.BOTH_SYMMETRIC,
    Reason.RENDEZVOUS_BUSY,
    Reason.RELAY_UNREACHABLE,
    Reason.RELAY_REFUSED,
    Reason.RELAY_LOST,
)


def _path_in_words(proxy: BaseProxy, node_id: NodeId) -> str:
    try:
        return proxy.explain(node_id).text
    except ProxyClosedError as closed:
        return str(closed)


def _causes(proxy: BaseProxy, node_id: str | None, http_status: int | None) -> list[KeynetError]:
    """What may have failed, as far as the proxy knows."""
    if http_status == Reason.CREDENTIALS_REQUIRED.http_status:
        return [RequestError(reason=Reason.CREDENTIALS_REQUIRED, stage=Stage.REQUEST)]
    try:
        nodes = {*proxy.peers(), *_asked.get(proxy, ())} if node_id is None else {NodeId(node_id)}
        found = [cause for node in nodes if (cause := proxy.last_error(node)) is not None]
    except ProxyClosedError as closed:
        return [closed]
    return [cause for cause in found if http_status in (None, cause.reason.http_status)]


def _guess(http_status: int) -> str:
    reasons = [reason for reason in Reason if reason.http_status == http_status]
    return "one of " + ", ".join(reasons) if reasons else "that is not an answer of keynet"
