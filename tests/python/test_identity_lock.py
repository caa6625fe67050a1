"""One running node for an identity file."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from test_secrets import command

import keynet
from keynet._lock import IdentityLock
from keynet.cli import ExitCode
from keynet.demo.run import Process


def test_a_second_process_with_the_same_file_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    with Process("keynet", "up", "--identity", str(path), "--listen", "127.0.0.1:0", "--json") as first:
        pid = first.expect("ready")["pid"]
        link = tmp_path / "other-name.pem"
        link.symlink_to(path)
        for name in (path, link):
            done = command("up", "--identity", str(name), "--json")
            assert done.returncode == ExitCode.IDENTITY
            error = json.loads(done.stdout)["error"]
            assert error["reason"] == "identity_in_use"
            assert f"in use by process {pid}" in error["detail"]
            assert "keynet id" in error["advice"]
        # what only reads the file goes on
        assert command("id", "--show", str(path)).returncode == 0
        with pytest.raises(keynet.IdentityInUse):
            keynet.sync.Proxy(keynet.Identity.load(path)).start()
        first._process.send_signal(signal.SIGTERM)
        assert [line["event"] for line in first.lines()][-1] == "closed"
        first.finish()
    with keynet.sync.Proxy(keynet.Identity.load(path), listen="127.0.0.1:0") as node:
        node.close(drain=False)


def test_a_process_that_is_killed_leaves_the_identity_free(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    keynet.Identity.generate().save(path)
    code = (
        "import sys, keynet\n"
        f"proxy = keynet.sync.Proxy(keynet.Identity.load({str(path)!r}), listen='127.0.0.1:0')\n"
        "proxy.start(); print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(keynet.IdentityInUse):
            IdentityLock.take(path)
        child.kill()
        child.wait(30)
    lock = IdentityLock.take(path)
    assert lock is not None
    lock.release()


def test_nodes_of_one_process_share_the_file_and_the_last_gives_it_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    keynet.Identity.generate().save(path)
    first, second = IdentityLock.take(path), IdentityLock.take(path)
    assert first is not None
    assert second is not None
    probe = f"from keynet._lock import IdentityLock; import pathlib; IdentityLock.take(pathlib.Path({str(path)!r}))"

    def is_free() -> bool:
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) or "IdentityInUse" in done.stderr
        return done.returncode == 0

    assert not is_free()
    first.release()
    assert not is_free()
    second.release()
    assert is_free()


def test_where_nothing_can_be_written_the_file_itself_is_locked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.pem"
    keynet.Identity.generate().save(path)
    real = os.open

    def read_only(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    lock = IdentityLock.take(path)
    assert lock is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.pem"]
    lock.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    keynet.Identity.generate().save(path)
    lock = IdentityLock.take(path)
    assert lock is not None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    try:
        lock.release()
        again = IdentityLock.take(path)
        assert again is not None
        again.release()
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)


def is_free(path: pathlib.Path) -> bool:
    with path.with_name(f".{path.name}.lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_proxy_that_nobody_closes_gives_the_identity_back_when_it_is_collected(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    proxy = keynet.sync.Proxy(keynet.Identity.load_or_create(path), listen="127.0.0.1:0")
    proxy.start()
    assert not is_free(path)
    del proxy
    gc.collect()
    assert is_free(path)


async def test_a_close_that_is_cancelled_gives_the_identity_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    proxy = keynet.Proxy(keynet.Identity.load_or_create(path), listen="127.0.0.1:0")
    await proxy.start()
    closing = asyncio.create_task(proxy.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert is_free(path)
    await proxy.close()


def test_a_close_that_is_interrupted_gives_the_identity_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.pem"
    proxy = keynet.sync.Proxy(keynet.Identity.load_or_create(path), listen="127.0.0.1:0")
    proxy.start()
    core = proxy._core

    class Interrupted:
        def close(self, drain: bool, loop: None) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(proxy, "_core", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        proxy.close()
    assert is_free(path)
    assert core is not None
    core.close(False, None)
