"""One running node for an identity file: a lock beside it, which a process that is killed leaves behind open.

The lock is flock(2) on `.NAME.lock` beside the file, with the number of the process in it. Where nothing can be written
(a secret of Kubernetes) it is taken on the identity file itself, and does not tell by whom.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import threading

from ._reasons import Reason, Stage
from .errors import IdentityInUse

__all__ = ["IdentityLock"]

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_MAX_PID = 20
"""Bytes that are read of the number in the file."""


class IdentityLock:
    """The right of this process to run nodes with the identity of one file. All nodes of the process share it."""

    def __init__(self, path: pathlib.Path, descriptor: int) -> None:
        self._path, self._descriptor, self._holders = path, descriptor, 1

    @classmethod
    def take(cls, path: pathlib.Path) -> IdentityLock | None:
        """Takes it, or raises `IdentityInUse`. None: this file system knows no locks."""
        # all names of one file are one identity
        path = pathlib.Path(os.path.realpath(path))
        with _guard:
            while (held := _held.get(path)) is not None:
                held._holders += 1
                # what is collected just then may have been its last holder
                if _held.get(path) is held:
                    return held
            descriptor = _open(path)
            if descriptor is None:
                return None
            lock = _held[path] = cls(path, descriptor)
            return lock

    def release(self) -> None:
        """Gives it back; each that took it does so once."""
        with _guard:
            self._holders -= 1
            if self._holders == 0 and _held.get(self._path) is self:
                del _held[self._path]
                # a child that is being forked may not have closed its copy yet, and a copy keeps what is only closed
                with contextlib.suppress(OSError):
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
                os.close(self._descriptor)


def _open(path: pathlib.Path) -> int | None:
    beside = path.with_name(f".{path.name}.lock")
    try:
        # not through a link that somebody else laid there
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        try:
            descriptor, beside = os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
        except OSError:
            return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if beside != path:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        who = "" if beside == path else _pid(descriptor)
        os.close(descriptor)
        if error.errno in _BUSY:
            raise _in_use(path, who) from None
        return None
    return descriptor


def _pid(descriptor: int) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return os.pread(descriptor, _MAX_PID, 0).decode("ascii").strip()
    return ""


def _in_use(path: pathlib.Path, pid: str) -> IdentityInUse:
    who = f"process {pid}" if pid.isdecimal() else "another process"
    detail = (
        f"{path} is in use by {who}: two nodes with one identity would take each other's place at the rendezvous; "
        "`keynet status` shows the one that runs"
    )
    return IdentityInUse(reason=Reason.IDENTITY_IN_USE, stage=Stage.SETUP, detail=detail)


def _forget_in_child() -> None:
    # the child has none of its parent's nodes, and must not keep their lock when the parent ends
    global _guard
    _guard = threading.RLock()
    for lock in _held.values():
        with contextlib.suppress(OSError):
            os.close(lock._descriptor)
    _held.clear()


# to be taken again by the same thread: a proxy that nobody closed gives its lock back whenever it is collected
_guard = threading.RLock()
_held: dict[pathlib.Path, IdentityLock] = {}
os.register_at_fork(after_in_child=_forget_in_child)
