"""coturn's own client against the relay."""

from __future__ import annotations

import re

import pytest

import keynet
from turn_clients import echo, loopback_relay, needs_uclient, port_of, uclient

pytestmark = needs_uclient


def _all_came_back(output: str, messages: int) -> None:
    counts = [int(count) for count in re.findall(r"tot_recv_msgs=(\d+)", output)]
    assert counts, output
    assert counts[-1] == messages, output


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("flags", [(), ("-s",), ("-t",), ("-t", "-s"), ("-t", "-S")], ids=" ".join)
async def test_messages_come_back(ip: str, flags: tuple[str, ...], alice: keynet.Identity) -> None:
    host = f"[{ip}]" if ":" in ip else ip
    async with echo(ip) as peer, loopback_relay(host, tls=f"{host}:0", identity=alice) as relay:
        address = relay.tls_addresses[0] if "-S" in flags else relay.addresses[0]
        family = ("-x",) if ":" in ip else ()
        output = await uclient(ip, port_of(address), peer, *flags, *family, messages=20)
        _all_came_back(output, 40)
        stats = relay.stats()
        assert stats["datagrams_to_peers"] == stats["datagrams_to_clients"] == 40
        assert {ip for ip, *_ in peer.senders} == {ip}
