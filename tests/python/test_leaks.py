"""Opening and closing over and over leaves nothing behind: descriptors, threads, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import time

import keynet
from support import pair, proxy, sync_proxy

# tokio's blocking threads and gRPC's come and go by themselves
SPARE_THREADS = 3


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def resident_kib() -> int:
    fields = pathlib.Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def settled(before: tuple[int, int]) -> tuple[int, int]:
    """Descriptors and threads, once they are no more than before, or after a while."""
    deadline = time.monotonic() + 20
    while True:
        gc.collect()
        now = descriptors(), threads()
        if (now[0] <= before[0] and now[1] <= before[1] + SPARE_THREADS) or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def once(identity: keynet.Identity) -> None:
    with sync_proxy(identity, services={1: "127.0.0.1:1"}, allow=lambda request: True) as node:
        node.events()
        node.stats()


def test_many_proxies(alice: keynet.Identity) -> None:
    for _ in range(50):  # lets allocators and caches reach their size
        once(alice)
    before, memory = (descriptors(), threads()), resident_kib()
    for _ in range(200):
        once(alice)
    after = settled(before)
    assert after[0] <= before[0]
    assert after[1] <= before[1] + SPARE_THREADS
    assert resident_kib() - memory < 32 * 1024


async def test_many_pings(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async def ping() -> None:
        async with pair(alice, bob, "127.0.0.1:1") as (a, b):
            await a.ping(b.node_id)

    for _ in range(5):
        await ping()
    before = descriptors(), threads()
    for _ in range(30):
        await ping()
    after = await asyncio.to_thread(settled, before)
    assert after[0] <= before[0]


async def test_many_cancelled_starts(alice: keynet.Identity) -> None:
    async with proxy(alice):
        before = descriptors(), threads()
        for n in range(50):
            task = asyncio.create_task(proxy(alice).start())
            await asyncio.sleep(0.001 * (n % 3))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del task
        after = await asyncio.to_thread(settled, before)
        assert after[0] <= before[0]
