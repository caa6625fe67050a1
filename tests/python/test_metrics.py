"""Metrics of a running node, as Prometheus scrapes them."""

from __future__ import annotations

import asyncio
import http.client
import json
import pathlib
import re
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

import keynet
import keynet.metrics
from support import SERVICE, aio_greeter, proxy, say_hello

DASHBOARD = pathlib.Path(__file__).parents[2] / "docs" / "grafana.json"


def scrape(server: keynet.metrics.MetricsServer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


async def test_a_call_shows_in_what_is_scraped(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with aio_greeter("127.0.0.1:0") as backend:
        serving = proxy(bob, services={SERVICE: backend}, allow=[alice.node_id])
        async with serving as server, proxy(alice) as caller:
            caller.add_peer(bob.node_id, [server.proxy_address])
            served = keynet.metrics.serve("127.0.0.1:0", keynet.metrics.ProxyCollector(caller))
            try:
                before = await asyncio.to_thread(scrape, served)
                assert before["keynet_connections_opened_total", ()] == 0
                await say_hello(caller, bob.node_id)
                after = await asyncio.to_thread(scrape, served)
            finally:
                await asyncio.to_thread(served.close)
            assert after["keynet_connections_opened_total", ()] == 1
            assert after["keynet_payload_bytes_total", (("direction", "out"),)] > 0
            assert after["keynet_peers", (("path", "direct"),)] == 1
            assert after["keynet_relayed_bytes_total", (("direction", "out"),)] == 0
            peer = (("direction", "out"), ("node_id", str(bob.node_id)), ("path", "direct"))
            assert after["keynet_peer_bytes_total", peer] > 0


@pytest.mark.parametrize(
    ("fields", "hosts", "status"),
    [
        ({}, [], 200),
        ({"Host": "localhost:9464"}, [], 200),
        ({"Host": "[::1]:9464"}, [], 200),
        ({"Host": "192.0.2.7:9464"}, [], 200),
        ({"Host": socket.gethostname()}, [], 200),
        ({"Host": "attacker.example:9464"}, [], 403),
        ({"Host": "127.0.0.1.attacker.example"}, [], 403),
        ({"Host": "localhost.attacker.example"}, [], 403),
        ({"Host": "node1.example:9464"}, ["Node1.example"], 200),
        ({"Host": "attacker.example"}, ["node1.example"], 403),
        ({"Host": "attacker.example"}, ["*"], 200),
        ({"Sec-Fetch-Site": "cross-site"}, [], 403),
        ({"Sec-Fetch-Site": "none"}, [], 200),
        ({"Origin": "https://attacker.example"}, [], 403),
        ({"Origin": "null"}, [], 403),
        ({"Origin": "http://127.0.0.1:3000"}, [], 200),
    ],
)
def test_pages_in_a_browser_do_not_read_metrics(fields: dict[str, str], hosts: list[str], status: int) -> None:
    served = keynet.metrics.serve("127.0.0.1:0", hosts=hosts)
    try:
        asked = http.client.HTTPConnection(served.address, timeout=30)
        asked.request("GET", "/metrics", headers=fields)
        answer = asked.getresponse()
        assert answer.status == status
        assert answer.read().startswith(b"metrics: ") == (status == 403)
        asked.close()
    finally:
        served.close()


async def test_the_dashboard_asks_for_what_there_is(alice: keynet.Identity) -> None:
    collector = None
    async with proxy(
        alice, rendezvous=[f"{keynet.Identity.generate().node_id}@127.0.0.1:9"], port_mapping=False
    ) as node:
        collector = keynet.metrics.ProxyCollector(node)
        families = list(collector.collect())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    asked = set(re.findall(r"keynet_[a-z_]+", DASHBOARD.read_text()))
    assert asked <= names, asked - names
    assert list(collector.collect()) == [], "a node that has closed has no metrics"
    json.loads(DASHBOARD.read_text())


def test_an_address_that_cannot_be_served() -> None:
    with pytest.raises(keynet.InvalidArgument, match="host:port"):
        keynet.metrics.serve("9464")
    server = keynet.metrics.serve("127.0.0.1:0")
    try:
        with pytest.raises(keynet.BindError, match="metrics"):
            keynet.metrics.serve(server.address)
    finally:
        server.close()
