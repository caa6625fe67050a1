"""The STUN server and the discovery of what this machine's network does, through the extension module."""

import socket

import pytest

from keynet import _keynet
from keynet.errors import KeynetError


def test_a_server_on_two_addresses_tells_all() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = _keynet.StunServer.bind([f"127.0.0.1:{port}", "127.0.0.1:0"], None)
    first, second = server.addresses()
    assert first == f"127.0.0.1:{port}"
    assert second.startswith("127.0.0.1:")
    found = _keynet.discover([f"localhost:{port}"], 20.0, None)
    assert (found["mapping"], found["ports"]) == ("endpoint-independent", "preserved")
    assert (found["external"], found["translated"], found["udp_blocked"]) == ("127.0.0.1", False, False)
    assert any(row["kind"] == "loopback" and row["prefix"] in (8, 128) for row in found["addresses"])
    assert server.stats()["answers"] > 8
    server.close(None)
    server.close(None)


def test_no_server_is_no_verdict() -> None:
    found = _keynet.discover([], 5.0, None)
    assert found["mapping"] == found["filtering"] == found["ports"] == "unknown"
    assert found["addresses"]
    assert not found["udp_blocked"]


@pytest.mark.parametrize("bad", [["nonsense"], ["127.0.0.1:0"], ["127.0.0.1:x"]])
def test_servers_have_a_port(bad: list[str]) -> None:
    with pytest.raises(KeynetError, match="host:port"):
        _keynet.discover(bad, 5.0, None)


def test_addresses_of_a_server_are_addresses() -> None:
    for bad in ([], ["localhost:3478"], ["127.0.0.1:0"] * 5):
        with pytest.raises(KeynetError):
            _keynet.StunServer.bind(bad, None)
