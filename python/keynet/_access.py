"""`allow=`: who may use this node's services."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Union, final

from . import _keynet
from ._node import NodeId
from .errors import InvalidArgument

__all__ = ["ANYONE", "AccessRequest", "Allow", "Anyone"]

_log = logging.getLogger("keynet.access")

# asked at once; a callable that hangs holds one of them, and those behind it are denied when their time is over
_WORKERS = 4


@final
class Anyone:
    """The type of `keynet.ANYONE`."""

    def __repr__(self) -> str:
        return "keynet.ANYONE"


ANYONE: Final = Anyone()
"""`allow=keynet.ANYONE`: every node on earth that has a key may use the services; they must judge callers
themselves."""


@dataclasses.dataclass(frozen=True)
class AccessRequest:
    """A node asks for a service. It has proved to hold the key of `node_id`."""

    node_id: NodeId
    node_ids: tuple[NodeId, ...]
    """Every name it answers to, newest first."""
    service_port: int
    remote_address: str
    """Its UDP address."""


AccessCallable = Callable[[AccessRequest], Union[bool, Awaitable[bool]]]  # noqa: UP007 - evaluated at run time on 3.10
Allow = Union[Anyone, Iterable[str], AccessCallable]  # noqa: UP007
"""What `allow=` takes: `keynet.ANYONE`, node ids, or a (possibly async) function that is asked."""


def _split(allow: Allow | None) -> tuple[object, AccessCallable | None]:
    """What the core gets, and the function to ask if there is one."""
    if allow is None:
        return None, None
    if isinstance(allow, Anyone):
        return "anyone", None
    if isinstance(allow, str):
        raise InvalidArgument("allow= takes several node ids: write [node_id], or keynet.ANYONE")
    if callable(allow):
        return "ask", allow
    return [str(NodeId(node)) for node in allow], None


class _Gatekeeper:
    """Threads that ask the user's function, off the data path.

    An answer that is not True (a generator is not, nor is "no"; logged), an exception of any kind (logged) and silence
    for `allow_timeout` (kept by the core) all deny. No exception ends a thread: `SystemExit` of a plug-in must not deny
    everybody who comes later.
    """

    def __init__(
        self, requests: _keynet.AccessRequests, ask: AccessCallable, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self._requests, self._ask, self._loop = requests, ask, loop
        self._complaints = _Complaints()
        for n in range(_WORKERS):
            # daemons: they sit in the core, which lets them go when the proxy closes (at the latest at exit)
            threading.Thread(target=self._work, name=f"keynet-access-{n}", daemon=True).start()

    def _work(self) -> None:
        while (raw := self._requests.next()) is not None:
            number, node_id, node_ids, service_port, remote_address = raw
            try:
                request = AccessRequest(NodeId(node_id), tuple(map(NodeId, node_ids)), service_port, remote_address)
                verdict = self._ask(request)
                if inspect.isawaitable(verdict):
                    self._answer_later(number, request, verdict)
                else:
                    self._requests.answer(number, _is_yes(verdict))
            except BaseException as error:
                self._failed(number, node_id, error)

    def _failed(self, number: int, node_id: str, error: BaseException) -> None:
        try:
            self._complaints.say(node_id, error)
        finally:
            self._requests.answer(number, None)

    def _answer_later(self, number: int, request: AccessRequest, verdict: Awaitable[bool]) -> None:
        async def judge() -> None:
            try:
                allowed = _is_yes(await verdict)
            except asyncio.CancelledError as error:
                self._failed(number, request.node_id, error)
                raise
            except BaseException as error:
                # not passed on: SystemExit would end the program's event loop
                self._failed(number, request.node_id, error)
            else:
                self._requests.answer(number, allowed)

        if self._loop is None or self._loop.is_closed():
            if inspect.iscoroutine(verdict):
                verdict.close()
            raise InvalidArgument("an async allow= needs the event loop that keynet.Proxy was started on")
        judgement = judge()
        try:
            asyncio.run_coroutine_threadsafe(judgement, self._loop)
        except RuntimeError:  # closed in between
            judgement.close()
            raise


def _is_yes(verdict: object) -> bool:
    """True lets in; False and None do not. Anything else is a mistake, by which nobody gets in."""
    if verdict is None:
        return False
    # numpy has a kind of its own
    if isinstance(verdict, bool) or type(verdict).__name__ == "bool_":
        return bool(verdict)
    raise TypeError(f"allow= has to return True or False, not an object of type {type(verdict).__name__}")


class _Complaints:
    """Tracebacks that a stranger can cause: a few in a minute, then only how many there were."""

    _AT_ONCE, _SECONDS = 5, 60.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since, self._said, self._unsaid = time.monotonic(), 0, 0

    def say(self, node_id: str, error: BaseException) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._since >= self._SECONDS:
                self._since, self._said = now, 0
            self._said += 1
            if self._said > self._AT_ONCE:
                self._unsaid += 1
                return
            unsaid, self._unsaid = self._unsaid, 0
        more = f" ({unsaid} more failures were not logged)" if unsaid else ""
        _log.error("allow= failed for node %s; access denied%s", node_id, more, exc_info=error)
