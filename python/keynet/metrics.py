"""Metrics for Prometheus (needs `pip install 'pykeynet[metrics]'`).

    server = keynet.metrics.serve("127.0.0.1:9464", keynet.metrics.ProxyCollector(proxy))

Names and units follow the conventions of Prometheus: base units, `_total` for counters. docs/grafana.json is a
dashboard of them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import socketserver
import threading
import wsgiref.simple_server
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ._browsers import refusal
from ._extras import needed_by
from ._keynet import __version__, excerpt
from ._proxy import BaseProxy
from ._reasons import Reason, Stage
from ._repr import shown
from ._status import PeerStatus, Status
from ._text import whole
from .errors import BindError, InvalidArgument

with needed_by("keynet.metrics", "metrics"):
    import prometheus_client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

__all__ = ["MetricsServer", "ProxyCollector", "StatsCollector", "serve"]

MAX_PEERS = 1_000
"""Peers with series of their own; each is some 500 bytes in every scrape. The others are counted in the totals only."""

_DROPPED = ("unknown", "malformed", "stray", "full")


class ProxyCollector(Collector):
    """The metrics of a `keynet.Proxy`; asked anew at each scrape. None while it does not run."""

    def __init__(self, proxy: BaseProxy, *, per_peer: bool = True) -> None:
        self._proxy, self._per_peer = proxy, per_peer

    def __repr__(self) -> str:
        return shown(self, self._proxy)

    def collect(self) -> Iterable[Metric]:
        """What a registry calls at each scrape."""
        if not self._proxy.is_running:
            return
        stats, status = self._proxy.stats(), self._proxy.status()
        info = GaugeMetricFamily("keynet_build_info", "Version of keynet.", labels=["version", "node_id"])
        info.add_metric([__version__, status.node_id], 1)
        yield info
        yield from _traffic(dict(stats))
        yield from _rendezvous(status)
        yield from _relays(status)
        yield from _peers(status, per_peer=self._per_peer)


class StatsCollector(Collector):
    """The counters of a rendezvous or a relay, by the names of its `stats()`, with a prefix.

    `gauges` are the names of those that are no counters.
    """

    def __init__(self, prefix: str, stats: Callable[[], Mapping[str, int]], gauges: Iterable[str] = ()) -> None:
        self._prefix, self._stats, self._gauges = prefix, stats, frozenset(gauges)

    def __repr__(self) -> str:
        return shown(self, self._prefix)

    def collect(self) -> Iterable[Metric]:
        """What a registry calls at each scrape."""
        for name, value in self._stats().items():
            kind = GaugeMetricFamily if name in self._gauges else CounterMetricFamily
            yield kind(f"{self._prefix}_{name}", name.replace("_", " ").capitalize() + ".", value=value)


class MetricsServer:
    """What `serve` gives: an HTTP server on a thread of its own."""

    def __init__(self, server: wsgiref.simple_server.WSGIServer, thread: threading.Thread) -> None:
        self._server, self._thread = server, thread

    @property
    def address(self) -> str:
        """Where it listens: "host:port"."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def __repr__(self) -> str:
        return shown(self, self.address)

    def close(self) -> None:
        """Ends it. May be called again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        return


def serve(listen: str, *collectors: Collector, hosts: Sequence[str] = ()) -> MetricsServer:
    """Answers `GET /metrics` at "host:port" in the text format of Prometheus. Raises `BindError`, `InvalidArgument`.

    It asks for no credentials: let it listen where only the scraper reaches it. Pages in a browser are refused (403):
    what asks for it by a name that is neither `localhost` nor that of the machine nor among `hosts`, or says that it
    comes from another site. `hosts=["*"]` answers everybody.
    """
    host, port = _host_and_port(listen)
    registry = prometheus_client.CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    app = _guarded(prometheus_client.make_wsgi_app(registry), hosts)
    try:
        server = _listening(host, port, app)
    except UnicodeError:
        # what cannot be a name: an empty label, or one of more than 63 characters
        raise _malformed(listen) from None
    except OSError as error:
        raise BindError(
            reason=Reason.BIND_FAILED, stage=Stage.SETUP, address=listen, detail=f"metrics: {error}"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="keynet-metrics", daemon=True)
    thread.start()
    return MetricsServer(server, thread)


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    number = whole(port)
    if number is None or number > 65_535:
        raise _malformed(listen)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ip = ipaddress.IPv6Address(host)
        except ValueError:
            raise _malformed(listen) from None
        if ip.is_link_local and ip.scope_id is None:
            detail = f'metrics: {ip} is link-local: say by which interface, "[{ip}%eth0]:{port}"'
            raise InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)
    elif not re.fullmatch(r"[\w.-]+", host):
        raise _malformed(listen)
    return host, number


def _malformed(listen: str) -> InvalidArgument:
    detail = f'metrics: "{excerpt(listen)}" is not of the form "host:port"'
    return InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)


def _listening(host: str, port: int, app: Any) -> wsgiref.simple_server.WSGIServer:
    family, *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind = _Server6 if family == socket.AF_INET6 else _Server
    server = wsgiref.simple_server.make_server(str(address), port, app, kind, _Handler)
    assert isinstance(server, wsgiref.simple_server.WSGIServer)
    return server


def _guarded(app: Any, hosts: Sequence[str]) -> Any:
    def guarded(environ: dict[str, Any], start_response: Any) -> Any:
        def field(name: str) -> str:
            return str(environ.get(f"HTTP_{name}", ""))

        why = refusal(field("HOST"), field("ORIGIN"), field("SEC_FETCH_SITE"), names=hosts)
        if why is None:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"metrics: {why}\n".encode()]

    return guarded


def _traffic(stats: Mapping[str, int]) -> Iterable[Metric]:
    yield GaugeMetricFamily("keynet_connections", "Open connections.", value=stats["connections"])
    yield GaugeMetricFamily("keynet_clients", "Local clients of the forward proxy.", value=stats["clients"])
    for name, text in (("opened", "Opened."), ("closed", "Ended."), ("refused", "Did not come about.")):
        yield CounterMetricFamily(f"keynet_connections_{name}", text, value=stats[name])
    yield _both_ways("keynet_payload_bytes", "Payload of connections.", stats["bytes_in"], stats["bytes_out"])
    yield _both_ways("keynet_udp_bytes", "Datagrams, by their size.", stats["udp_bytes_in"], stats["udp_bytes_out"])
    yield _both_ways("keynet_udp_datagrams", "Datagrams.", stats["datagrams_in"], stats["datagrams_out"])
    yield _both_ways(
        "keynet_relayed_bytes",
        "Datagrams of connections that a relay carried, by their size.",
        stats["relayed_bytes_in"],
        stats["relayed_bytes_out"],
    )
    dropped = CounterMetricFamily("keynet_udp_dropped_datagrams", "Datagrams that nobody wanted.", labels=["cause"])
    for cause in _DROPPED:
        dropped.add_metric([cause], stats[f"dropped_{cause}"])
    yield dropped
    yield CounterMetricFamily("keynet_udp_send_errors", "Refused by the system.", value=stats["send_errors"])
    yield CounterMetricFamily("keynet_paths_lost", "Peers that fell silent.", value=stats["paths_lost"])
    yield CounterMetricFamily("keynet_paths_moved", "Moves from one path to another.", value=stats["paths_moved"])


def _rendezvous(status: Status) -> Iterable[Metric]:
    connected = GaugeMetricFamily("keynet_rendezvous_connected", "Registered there.", labels=["node_id"])
    rtt = GaugeMetricFamily("keynet_rendezvous_rtt_seconds", "Round trip time when it was reached.", labels=["node_id"])
    for one in status.rendezvous:
        connected.add_metric([one.node_id], int(one.connected))
        if one.rtt is not None:
            rtt.add_metric([one.node_id], one.rtt)
    yield from (connected, rtt)


def _relays(status: Status) -> Iterable[Metric]:
    used = GaugeMetricFamily("keynet_relay_in_use", "It keeps an address for this node.", labels=["relay", "transport"])
    rtt = GaugeMetricFamily("keynet_relay_rtt_seconds", "Round trip time when it was reached.", labels=["relay"])
    carried = CounterMetricFamily("keynet_relay_bytes", "Carried since it is in use.", labels=["relay", "direction"])
    dropped = CounterMetricFamily("keynet_relay_dropped_datagrams", "Lost on the way to the relay.", labels=["relay"])
    for one in status.relays:
        if one.introduction:
            continue
        used.add_metric([one.relay, one.transport or ""], int(one.socket is not None))
        if one.rtt is not None:
            rtt.add_metric([one.relay], one.rtt)
        carried.add_metric([one.relay, "in"], one.bytes_in)
        carried.add_metric([one.relay, "out"], one.bytes_out)
        dropped.add_metric([one.relay], one.dropped)
    yield from (used, rtt, carried, dropped)


def _peers(status: Status, *, per_peer: bool) -> Iterable[Metric]:
    peers = GaugeMetricFamily("keynet_peers", "Peers beside rendezvous nodes, by the path in use.", labels=["path"])
    servers = {one.node_id for one in status.rendezvous}
    others = [peer for peer in status.peers if peer.node_id not in servers]
    for path in ("direct", "relayed", "none"):
        peers.add_metric([path], sum(_path(peer) == path for peer in others))
    yield peers
    if not per_peer:
        return
    labels = ["node_id"]
    rtt = GaugeMetricFamily("keynet_peer_rtt_seconds", "Round trip time of the path in use.", labels=labels)
    relayed = GaugeMetricFamily("keynet_peer_relayed", "A relay carries everything.", labels=labels)
    carried = CounterMetricFamily(
        "keynet_peer_bytes", "Datagrams of connections.", labels=[*labels, "direction", "path"]
    )
    for peer in others[:MAX_PEERS]:
        if peer.path is not None and peer.path.rtt is not None:
            rtt.add_metric([peer.node_id], peer.path.rtt)
        relayed.add_metric([peer.node_id], int(_path(peer) == "relayed"))
        for path, received, sent in (
            ("direct", peer.direct_in, peer.direct_out),
            ("relayed", peer.relayed_in, peer.relayed_out),
        ):
            carried.add_metric([peer.node_id, "in", path], received)
            carried.add_metric([peer.node_id, "out", path], sent)
    yield from (rtt, relayed, carried)


def _path(peer: PeerStatus) -> str:
    if peer.path is None or not peer.path.proven:
        return "none"
    return "relayed" if peer.path.relayed else "direct"


def _both_ways(name: str, text: str, received: int, sent: int) -> CounterMetricFamily:
    metric = CounterMetricFamily(name, text, labels=["direction"])
    metric.add_metric(["in"], received)
    metric.add_metric(["out"], sent)
    return metric
