"""gRPC (grpcio, plaintext) over each system: its own cost in Python hides much of the tunnel's."""

from __future__ import annotations

import time

import pytest
from load_server import STREAM, UNARY
from rows import DIRECT, KEYNET, PURE, TLS, Row
from test_tunnel import GIB, gigabits, micros

pytest.importorskip("grpc")

MESSAGE = 1 << 16
STREAMED = {DIRECT: GIB // 4, TLS: GIB // 4, KEYNET: GIB // 8, PURE: GIB // 32}


@pytest.fixture(scope="module")
def channels(measurements):
    made = {row.name: row.channel() for row in measurements.rows}
    yield made
    for channel in made.values():
        channel.close()


def test_unary(measurements, replayed, channels):
    batch = 20 if measurements.quick else 500

    def sample(row: Row) -> float:
        call = channels[row.name].unary_unary(UNARY)
        call(b"warm", timeout=20)
        start = time.perf_counter()
        for _ in range(batch):
            call(b"m" * 64, timeout=20)
        return (time.perf_counter() - start) / batch

    measurements.take("gRPC unary, 64 bytes", "us", micros, sample)
    replayed("gRPC unary, 64 bytes")


def test_stream(measurements, replayed, channels):
    def sample(row: Row) -> float:
        count = STREAMED[row.name] // MESSAGE // (8 if measurements.quick else 1)
        start = time.perf_counter()
        got = sum(map(len, channels[row.name].unary_stream(STREAM)(b"%d %d" % (count, MESSAGE), timeout=60)))
        assert got == count * MESSAGE
        return (time.perf_counter() - start) * GIB / got

    measurements.take("gRPC stream of 64 KiB", "Gbit/s", gigabits, sample)
    replayed("gRPC stream of 64 KiB")
