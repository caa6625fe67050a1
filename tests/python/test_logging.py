"""The core's log arrives in Python's logging, and never waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

import keynet
from support import sync_proxy


class Collect(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.threads: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def collected() -> Iterator[Collect]:
    logger = logging.getLogger("keynet")
    handler, level = Collect(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_core_logs(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity, collected: Collect
) -> None:
    with sync_proxy(bob) as server, sync_proxy(alice) as node:
        node.add_peer(mallory.node_id, [server.proxy_address])
        with pytest.raises(keynet.IdentityMismatch):
            node.ping(mallory.node_id)
        deadline = time.monotonic() + 20
        while not collected.records and time.monotonic() < deadline:
            time.sleep(0.05)
    assert collected.records
    assert all(record.name.startswith("keynet.") for record in collected.records)
    assert any("identity mismatch" in record.getMessage() for record in collected.records)
    assert {record.levelno for record in collected.records} <= {10, 20, 30, 40}


def test_a_changed_level_is_noticed(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity, collected: Collect
) -> None:
    with sync_proxy(bob) as server, sync_proxy(alice) as node:
        logging.getLogger("keynet").setLevel(logging.ERROR)
        time.sleep(1.5)
        node.add_peer(mallory.node_id, [server.proxy_address])
        collected.records.clear()
        with pytest.raises(keynet.IdentityMismatch):
            node.ping(mallory.node_id)
        time.sleep(0.5)
        assert collected.records == []


def test_a_handler_that_hangs_holds_nothing_up(alice: keynet.Identity, collected: Collect) -> None:
    hold = threading.Event()
    collected.emit = lambda record: hold.wait(60)  # type: ignore[method-assign,assignment,return-value]
    try:
        for _ in range(3):
            with sync_proxy(alice) as node:
                assert node.is_running
    finally:
        hold.set()
