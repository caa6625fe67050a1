"""A peer whose process is stopped for a while, starts anew, or ends: what becomes of the streams to it."""

from __future__ import annotations

import os
import pathlib
import signal
import socket

import keynet
from keynet.demo.run import Process
from support import SERVICE, sync_proxy

QUICK: keynet.Limits = {"lost_after": 1.0, "ping_active": 0.5}


def _echo(connection: socket.socket, end: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        got += end.recv(100)
    assert got == data


def test_a_stopped_peer_is_missed_and_its_streams_go_on(
    alice: keynet.Identity, tmp_path: pathlib.Path, host: str
) -> None:
    file = tmp_path / "server.pem"
    server = keynet.Identity.load_or_create(file)
    with (
        socket.create_server(
            (host.strip("[]"), 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ) as service,
        sync_proxy(alice, host, limits=QUICK, patience=60) as near,
    ):
        service.settimeout(30)
        backend = f"{host}:{service.getsockname()[1]}"
        options = ["--listen", f"{host}:0", "--service", f"{SERVICE}={backend}", "--allow", alice.node_id]
        with Process("keynet", "up", "--json", "--patience", "60", "--identity", str(file), *options) as far:
            near.add_peer(server.node_id, [far.expect("ready")["proxy_address"]])
            events = near.events()
            forward = near.forward(server.node_id, SERVICE, local="127.0.0.1:0")
            local, _, port = forward.address.rpartition(":")
            with socket.create_connection((local, int(port)), timeout=30) as client:
                end, _ = service.accept()
                end.settimeout(30)
                with end:
                    _echo(client, end, b"before")
                    os.kill(far.pid, signal.SIGSTOP)
                    try:
                        client.sendall(b"meanwhile")
                        while not isinstance(event := events.next(30), keynet.PeerLost):
                            pass
                        assert event.reason is keynet.Reason.PEER_LOST
                        assert len(near.connections()) == 1
                    finally:
                        os.kill(far.pid, signal.SIGCONT)
                    while not isinstance(event := events.next(30), keynet.PeerConnected):
                        pass
                    assert event.node_id == server.node_id
                    assert end.recv(9, socket.MSG_WAITALL) == b"meanwhile"
                    _echo(end, client, b"and back")
