"""The core's log arrives in Python's logging, and never waits for it."""

from __future__ import annotations

import logging
import socket
import threading
import time

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
def collected() -> Collect:
    logger = logging.getLogger("keynet")
    handler, level = Collect(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_core_logs(alice: keynet.Identity, bob: keynet.Identity, collected: Collect) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, sync_proxy(alice) as node:
        silent.bind(("127.0.0.1", 0))
        node.add_peer(bob.node_id, [f"127.0.0.1:{silent.getsockname()[1]}"])
        with pytest.raises(keynet.DialTimeout):
            node.ping(bob.node_id, timeout=0.3)
    deadline = time.monotonic() + 20
    while not collected.records and time.monotonic() < deadline:
        time.sleep(0.05)
    assert collected.records
    assert all(record.name.startswith("keynet") for record in collected.records)
    assert all(record.getMessage() for record in collected.records)


def test_a_handler_that_hangs_holds_nothing_up(alice: keynet.Identity, collected: Collect) -> None:
    hold = threading.Event()
    collected.emit = lambda record: hold.wait(60)  # type: ignore[method-assign,assignment,return-value]
    try:
        for _ in range(3):
            with sync_proxy(alice) as node:
                assert node.is_running
    finally:
        hold.set()
