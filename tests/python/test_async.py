"""Where Python meets the threads of the core: cancellation, loops that close early, forks, signals, exit."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

import keynet
from support import proxy, sync_proxy

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def silent(host: str) -> Iterator[str]:
    """A UDP address that never answers."""
    with socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_DGRAM) as blackhole:
        blackhole.bind((host.strip("[]"), 0))
        yield f"{host}:{blackhole.getsockname()[1]}"


def run(program: str, *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Another interpreter, in development mode: it complains about everything.

    But for how long a step took, which tells of the machine and not of the program.
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not re.fullmatch(r"Executing <.* took [\d.]+ seconds\n", line))
    return done


async def test_cancelling_a_dial_leaves_nothing(alice: keynet.Identity, bob: keynet.Identity, silent: str) -> None:
    async with proxy(alice) as node:
        node.add_peer(bob.node_id, [silent])
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(node.ping(bob.node_id, timeout=60), 0.02)
        task = asyncio.create_task(node.expect(bob.node_id, timeout=60))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert node.connections() == []
        start = time.monotonic()
    # nothing is left that closing would have to wait for
    assert time.monotonic() - start < 30


async def test_cancelling_a_start_leaves_nothing(alice: keynet.Identity) -> None:
    for _ in range(20):
        node = proxy(alice)
        task = asyncio.create_task(node.start())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not node.is_running


async def test_cancelling_a_wait_loses_no_event(alice: keynet.Identity) -> None:
    async with proxy(alice) as node:
        events = node.events()
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(events), 0.001)
        await node.close()
        assert await asyncio.wait_for(anext(events), 20) == keynet.Closed()


async def test_cancelling_a_close_does_not_stop_it(alice: keynet.Identity) -> None:
    node = proxy(alice)
    await node.start()
    task = asyncio.create_task(node.close())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await node.close()


def test_a_loop_that_closes_early(silent: str) -> None:
    done = run(f"""
        import asyncio, time, keynet
        node = keynet.Proxy(keynet.Identity.generate(), listen="[::]:0")
        other = keynet.Identity.generate().node_id

        async def begin():
            await node.start()
            node.add_peer(other, ["{silent}"])
            pings = [asyncio.ensure_future(node.ping(other, timeout=0.3)) for _ in range(5)]
            await asyncio.sleep(0.05)
            return pings

        loop = asyncio.new_event_loop()
        pings = loop.run_until_complete(begin())
        loop.close()
        time.sleep(1)                   # the results arrive at a loop that is gone
        for ping in pings:
            ping._log_destroy_pending = False
        print("still here")
    """)
    assert (done.returncode, done.stdout.strip()) == (0, "still here"), done.stderr
    assert "panic" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_closes_nothing(silent: str) -> None:
    done = run(f"""
        import asyncio, keynet
        node = keynet.sync.Proxy(keynet.Identity.generate(), listen="[::]:0",
                                 services={{1: "127.0.0.1:1"}}, allow=lambda request: True)
        node.start()
        other = keynet.Identity.generate().node_id
        node.add_peer(other, ["{silent}"])

        async def main():
            proxy = keynet.Proxy(keynet.Identity.generate(), listen="[::]:0")
            await proxy.start()
            proxy.add_peer(other, ["{silent}"])
            asyncio.ensure_future(proxy.ping(other, timeout=60))
            await asyncio.sleep(0.05)

        asyncio.run(main())
        print("end")
    """)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "end", "")


def test_threads_that_still_wait_at_exit(silent: str) -> None:
    done = run(f"""
        import threading, time, keynet
        node = keynet.sync.Proxy(keynet.Identity.generate(), listen="[::]:0")
        node.start()
        other = keynet.Identity.generate().node_id
        node.add_peer(other, ["{silent}"])

        def wait(work):
            try:
                work()
            except (keynet.KeynetError, TimeoutError):
                pass

        threading.Thread(target=wait, args=(lambda: node.ping(other, timeout=60),), daemon=True).start()
        threading.Thread(target=wait, args=(lambda: list(node.events()),), daemon=True).start()
        time.sleep(0.2)
        print("end")
    """)
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr
    assert "panic" not in done.stderr


def test_after_a_fork() -> None:
    done = run("""
        import os, warnings, keynet
        warnings.simplefilter("ignore")                 # Python warns of forking with threads; that is the point here
        identity = keynet.Identity.generate()
        node = keynet.sync.Proxy(identity, listen="[::]:0")
        node.start()
        events = node.events()
        child = os.fork()
        if child == 0:
            calls = [lambda: node.forward_address, lambda: node.connections(), lambda: node.ping(identity.node_id),
                     lambda: node.events(), lambda: events.next(1), node.stats]
            for call in calls:
                try:
                    call()
                except keynet.ForkedError as error:
                    assert error.reason is keynet.Reason.FORKED
                else:
                    raise SystemExit(1)
            with keynet.sync.Proxy(identity, listen="[::]:0") as own:       # one of its own works
                assert own.forward_address != "" and own.is_running
            del node, events
            print("child", flush=True)
            raise SystemExit(0)                          # runs atexit: must not hang on threads that are not there
        assert os.waitpid(child, 0)[1] == 0
        assert node.connections() == []                  # the parent's goes on
        node.close()
        print("parent")
    """)
    assert (done.returncode, done.stdout.split()) == (0, ["child", "parent"]), done.stderr


def test_forking_inside_the_context() -> None:
    done = run("""
        import os, warnings, keynet
        warnings.simplefilter("ignore")
        with keynet.sync.Proxy(keynet.Identity.generate(), listen="[::]:0") as node:
            child = os.fork()
            if child == 0:
                raise SystemExit(7)                      # leaves the context, which is the parent's to close
            assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
        print("parent")
    """)
    assert (done.returncode, done.stdout.strip()) == (0, "parent"), done.stderr


def test_control_c_ends_a_blocking_call(silent: str) -> None:
    program = f"""
        import keynet
        with keynet.sync.Proxy(keynet.Identity.generate(), listen="[::]:0") as node:
            other = keynet.Identity.generate().node_id
            node.add_peer(other, ["{silent}"])
            print("ready", flush=True)
            try:
                node.ping(other, timeout=60)
            except KeyboardInterrupt:
                print("interrupted")
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == "interrupted\n"
        assert child.wait(20) == 0


def test_blocking_calls_let_other_threads_run(alice: keynet.Identity, bob: keynet.Identity, silent: str) -> None:
    with sync_proxy(alice) as node:
        node.add_peer(bob.node_id, [silent])
        failures = []

        def ping() -> None:
            with pytest.raises(keynet.DialTimeout) as caught:
                node.ping(bob.node_id, timeout=0.5)
            failures.append(caught.value)

        threads = [threading.Thread(target=ping) for _ in range(8)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(failures) == 8
        assert time.monotonic() - start < 3


def test_from_several_loops(alice: keynet.Identity) -> None:
    async def once() -> None:
        async with proxy(alice) as node:
            assert node.is_running

    threads = [threading.Thread(target=lambda: asyncio.run(once())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


async def test_a_forgotten_proxy_closes_its_sockets(alice: keynet.Identity) -> None:
    node = proxy(alice)
    await node.start()
    host, _, port = node.forward_address.rpartition(":")
    del node
    gc.collect()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the forward proxy still accepts")


def test_threads_have_names(alice: keynet.Identity) -> None:
    with sync_proxy(alice):
        names = {
            open(f"/proc/self/task/{task}/comm").read().strip()  # noqa: SIM115
            for task in os.listdir("/proc/self/task")
        }
    assert {"keynet-core", "keynet-results", "keynet-log"} <= names


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_events_at_the_end_of_a_program_just_end(kind: str) -> None:
    reader = {
        "blocking": """
            def read():
                for event in proxy.events():
                    pass
                print("ended", flush=True)
        """,
        "asyncio": """
            async def look():
                async with keynet.Proxy(keynet.Identity.generate(), listen="127.0.0.1:0") as other:
                    running.set()
                    async for event in other.events():
                        pass
                    print("ended", flush=True)
            def read():
                asyncio.run(look())
        """,
    }[kind]
    done = run(
        textwrap.dedent("""
            import asyncio, threading, time, keynet
            running = threading.Event()
            proxy = keynet.sync.Proxy(keynet.Identity.generate(), listen="127.0.0.1:0")
            proxy.start()
        """)
        + textwrap.dedent(reader)
        + textwrap.dedent(f"""
            threading.Thread(target=read, daemon=True).start()
            {"running.wait()" if kind == "asyncio" else ""}
            time.sleep(0.2)
        """)
    )
    assert (done.returncode, done.stderr) == (0, "")
