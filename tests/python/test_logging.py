"""The core's log arrives in Python's logging, and never waits for it."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import keynet
from support import SERVICE, sync_proxy


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


def test_the_life_of_a_node_is_told_at_info(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity, collected: Collect
) -> None:
    logging.getLogger("keynet").setLevel(logging.INFO)
    quick: keynet.Limits = {"lost_after": 1.0, "ping_active": 0.5}
    services = {SERVICE: "127.0.0.1:1"}
    with sync_proxy(bob, services=services, allow=[mallory.node_id], limits=quick) as server:
        with sync_proxy(alice) as stranger, sync_proxy(mallory) as friend:
            caller = friend.proxy_address
            for node in (stranger, friend):
                node.add_peer(bob.node_id, [server.proxy_address])
                local = node.forward(bob.node_id, SERVICE, local="127.0.0.1:0")
                host, _, port = local.address.rpartition(":")
                with socket.create_connection((host, int(port)), timeout=20) as client, contextlib.suppress(OSError):
                    client.recv(1)
        why = "not on the access list"
        wanted = {
            f"node started node={bob.node_id} listen={server.proxy_address} forward={server.forward_address}",
            f"peer connected node={mallory.node_id} address={caller}",
            f"dial failed error=access denied: the peer refused: {why} [stage open, node {bob.node_id}",
            f"peer refused error=access denied: {why} [stage open, node {alice.node_id}",
            f"node closed node={alice.node_id}",
            f"peer lost node={mallory.node_id} address={caller} reason=peer_gone",
        }
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and wanted:
            told = [record.getMessage() for record in collected.records if record.levelno == logging.INFO]
            wanted = {start for start in wanted if not any(line.startswith(start) for line in told)}
            time.sleep(0.05)
    assert not wanted, told
