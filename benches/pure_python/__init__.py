"""keynet in plain asyncio Python: the same wire, small enough to read in one sitting.

It is the yardstick of the benchmarks and a second opinion on docs/protocol.md; it is no product. Layers,
bottom up: `packet` (uTP datagrams), `stun` (ping and pong), `stream` (a uTP connection), `utp` (the UDP
socket), `identity` and `tls`, `opening` (the first exchange of a stream), `connect` (HTTP CONNECT), `node`
(both proxies).

What it leaves out: punching of several addresses, roaming, keep-alive pings of its own, TLS resumption,
LEDBAT, path MTU search, GSO. It answers pings, so that the other side's keep-alive holds.
"""
