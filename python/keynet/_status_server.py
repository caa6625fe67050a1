"""The UNIX socket at which a running node says how it is doing, and the other end of it.

A request is one line of JSON, {"do": "status"} or {"do": "explain", "node_id": ...}; so is the answer. Only the node's
own user (and root) reaches it: the file is 0600, in a folder that is 0700.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import json
import os
import pathlib
import secrets
import socket
import stat
import time
from typing import Any

from ._lifetime import Runs
from ._node import NodeId
from ._places import home_folder, make_private
from ._plain import plain
from ._proxy import BaseProxy
from ._reasons import Reason, Stage
from ._repr import shown
from ._status import PathExplanation, Status, _explanation, _status
from .errors import BindError, InternalError, InvalidArgument, KeynetError, ProxyClosedError, _from_core

__all__ = ["StatusClient", "StatusServer", "running_sockets", "socket_folders"]

_MAX_REQUEST = 1024
"""Bytes; an `explain` has about 90."""
_MAX_ANSWER = 64 << 20
"""Bytes that the reading side takes: 10,000 peers with 8 paths each have about 20 MB."""
_MAX_READERS = 16
"""At once; one more is told so and closed. A person has a few terminals."""
_PATIENCE = 30.0
"""Seconds without a request, or with an answer unread, after which a reader is let go; they look once a second."""
_MAX_NAME = 107
"""Bytes of `sun_path` (unix(7)) before its final zero."""
_LOOK = 5.0
"""Seconds that the reading side waits for the node: it answers from memory."""
_SWEEP_AFTER = 60.0
"""Seconds after which a socket that is still being made was left by a node that was killed in the middle."""


class StatusServer(Runs):
    """Lets `keynet status` look at a proxy of this program, as `keynet up` does for its own.

        async with keynet.Proxy(identity) as proxy, keynet.StatusServer(proxy): ...

    `path` is the socket; unless given, one named after the node in the user's folder for such things, where `keynet
    status` looks: $XDG_RUNTIME_DIR/keynet, /run/user/UID/keynet or ~/.cache/keynet/run. Both kinds of proxies will do.
    """

    def __init__(self, proxy: BaseProxy, path: str | os.PathLike[str] | None = None) -> None:
        self._proxy = proxy
        self._wanted = None if path is None else pathlib.Path(path)
        self._path: pathlib.Path | None = None
        self._inode = 0
        self._server: asyncio.Server | None = None
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def path(self) -> pathlib.Path | None:
        """The socket; None unless it listens."""
        return self._path

    def __repr__(self) -> str:
        return shown(self, self._proxy.node_id.short, self._path or "not listening")

    async def start(self) -> None:
        """Begins to listen. Raises `BindError`."""
        try:
            if self._wanted is None:
                folder = _own_folder()
                sweep(folder)
                self._wanted = _free_name(folder, self._proxy.node_id)
            listener = _listen(self._wanted)
        except OSError as error:
            raise _bind_error(f"the status socket cannot be made: {error}") from None
        self._path, self._inode = self._wanted, self._wanted.stat().st_ino
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=_MAX_REQUEST)

    async def close(self) -> None:
        """Stops listening, and takes the socket away. May be called again."""
        server, self._server = self._server, None
        path, self._path = self._path, None
        if server is None or path is None:
            return
        server.close()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        with contextlib.suppress(OSError):
            # another node may have the name by now
            if path.stat().st_ino == self._inode:
                path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        crowded = len(self._readers) >= _MAX_READERS
        self._readers.add(task)
        try:
            if crowded:
                await _say(writer, {"error": _invalid(f"{_MAX_READERS} others look at this node already")})
            else:
                await self._serve(reader, writer)
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError):
            # the reader has gone, or was let go, or the node ends: nobody is left to tell, and asyncio would log it
            pass
        finally:
            self._readers.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), _PATIENCE)
            except ValueError:
                await _say(writer, {"error": _invalid(f"a request has {_MAX_REQUEST} bytes at most")})
                return
            if not line.endswith(b"\n"):
                return
            await _say(writer, self._answer(line))

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            what, node = request["do"], str(request.get("node_id"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {"error": _invalid('a request is a line of JSON: {"do": "status"}')}
        try:
            if what == "status":
                return {"status": self._proxy.status()}
            if what == "explain":
                explanation = self._proxy.explain(NodeId(node))
                return {"explanation": explanation, "text": explanation.text}
        except KeynetError as error:
            return {"error": error}
        return {"error": _invalid(f'nothing is known of {what!r}; there are "status" and "explain"')}


async def _say(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer, default=plain).encode() + b"\n")
    await asyncio.wait_for(writer.drain(), _PATIENCE)


class StatusClient:
    """The reading side, for programs without asyncio."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_LOOK)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise _nobody(f"no node answers at {path}: {error.strerror or error}") from None
        self._file = self._socket.makefile("rb")

    def status(self) -> Status:
        """How the node is doing."""
        status: Status = self._read(_status, self._ask({"do": "status"}), "status")
        return status

    def explain(self, node_id: NodeId) -> PathExplanation:
        """Why the node reaches another as it does, or does not."""
        answer = self._ask({"do": "explain", "node_id": node_id})
        explanation: PathExplanation = self._read(_explanation, answer, "explanation")
        return explanation

    def close(self) -> None:
        """Hangs up."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> StatusClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._file.readline(_MAX_ANSWER)
        except OSError as error:
            raise _nobody(f"the node at {self._path} has gone or hangs: {error.strerror or error}") from None
        if not line.endswith(b"\n"):
            raise _nobody(f"the node at {self._path} has gone")
        answer: dict[str, Any] = self._read(_object, line, None)
        if (failure := answer.get("error")) is not None:
            raise self._read(_error, failure, None)
        return answer

    def _read(self, convert: Any, raw: Any, key: str | None) -> Any:
        try:
            return convert(raw if key is None else raw[key])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            detail = f"what {self._path} answers is not understood ({error!r}): is the node of another version?"
            raise InternalError(reason=Reason.INTERNAL, stage=Stage.SETUP, detail=detail) from None


def _object(line: bytes) -> dict[str, Any]:
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise TypeError(f"{type(answer).__name__} in place of an object")
    return answer


def _error(raw: dict[str, Any]) -> KeynetError:
    return _from_core(raw["reason"], raw["stage"], raw["node_id"], raw["address"], raw["detail"], raw["message"])


# -- where sockets are -----------------------------------------------------------------------------------------------


def socket_folders() -> list[pathlib.Path]:
    """Where sockets of this user's nodes may be, the best place first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    bases = [pathlib.Path(runtime)] if runtime else []
    if not (runtime and _is_own(runtime)):
        bases.append(pathlib.Path(f"/run/user/{os.getuid()}"))
    folders = [base / "keynet" for base in bases if _is_folder(base)]
    home, cache = home_folder(), os.environ.get("XDG_CACHE_HOME", "")
    if not cache and home is not None:
        cache = os.path.join(home, ".cache")
    if cache:
        folders.append(pathlib.Path(cache) / "keynet" / "run")
    return list(dict.fromkeys(folders))


def _is_folder(path: pathlib.Path) -> bool:
    # what may not be looked at belongs to somebody else: `su` and `sudo -E` leave XDG_RUNTIME_DIR as it was
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _names_in(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Files of a folder, none if it may not be read."""
    try:
        return sorted(pathlib.Path(folder, name) for name in os.listdir(folder) if fnmatch.fnmatchcase(name, pattern))
    except OSError:
        return []


def _is_own(folder: str) -> bool:
    """Whether a folder that the user names is the user's: then nodes are there and nowhere else in /run."""
    with contextlib.suppress(OSError):
        return os.stat(folder).st_uid == os.getuid()
    return False


def running_sockets(node_id: NodeId | None = None) -> list[pathlib.Path]:
    """The sockets that somebody listens at; of one node, or of all."""
    names = "*.sock" if node_id is None else f"{node_id}*.sock"
    return [path for folder in socket_folders() for path in _names_in(folder, names) if _is_live(path)]


def sweep(folder: pathlib.Path) -> None:
    """Takes away the sockets of nodes that were killed."""
    for path in [*_names_in(folder, "*.sock"), *_names_in(folder, ".*.new")]:
        with contextlib.suppress(OSError):
            young = path.suffix == ".new" and time.time() - path.stat().st_mtime < _SWEEP_AFTER
            if stat.S_ISSOCK(path.stat().st_mode) and not young and not _is_live(path):
                path.unlink()


def _own_folder() -> pathlib.Path:
    """The first folder that is ours or can be made."""
    complaints = []
    for folder in socket_folders():
        if (complaint := _take(folder)) is None:
            return folder
        complaints.append(f"{folder}: {complaint}")
    raise OSError("; ".join(complaints) or "there is no home directory and no XDG_RUNTIME_DIR to make it in")


def _take(folder: pathlib.Path) -> str | None:
    """Makes the folder private to this user; or what is against it."""
    try:
        make_private(folder)
        found = folder.stat()
        if found.st_uid != os.getuid():
            return "it belongs to another user"
        if stat.S_IMODE(found.st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _free_name(folder: pathlib.Path, node_id: NodeId) -> pathlib.Path:
    path = folder / f"{node_id}.sock"
    # one identity may run twice
    return folder / f"{node_id}.{os.getpid()}.sock" if _is_live(path) else path


def _is_live(path: pathlib.Path) -> bool:
    """Whether somebody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        # a full queue is somebody, too
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _listen(path: pathlib.Path) -> socket.socket:
    """Takes the name only when it listens, so that nobody who sweeps takes it for a dead one, and is private before."""
    listener = socket.socket(socket.AF_UNIX)
    making = path.with_name(f".{secrets.token_hex(4)}.new")
    try:
        if len(os.fsencode(path)) > _MAX_NAME:
            raise OSError(errno.ENAMETOOLONG, f"the name of a UNIX socket has {_MAX_NAME} bytes at most", str(path))
        if path.exists() and (not path.is_socket() or _is_live(path)):
            raise FileExistsError(errno.EEXIST, "it is there already", str(path))
        listener.bind(str(making))
        making.chmod(0o600)
        listener.listen(_MAX_READERS)
        listener.setblocking(False)
        making.rename(path)
    except OSError:
        listener.close()
        with contextlib.suppress(OSError):
            making.unlink()
        raise
    return listener


def _invalid(detail: str) -> InvalidArgument:
    return InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)


def _nobody(detail: str) -> ProxyClosedError:
    return ProxyClosedError(reason=Reason.PROXY_CLOSED, stage=Stage.SETUP, detail=detail)


def _bind_error(detail: str) -> BindError:
    return BindError(reason=Reason.BIND_FAILED, stage=Stage.SETUP, detail=detail)
