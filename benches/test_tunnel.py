"""The tunnel without gRPC: bulk data, connecting, small messages. The kernel does the client's work."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from load_server import CHUNK, exactly, receive, send
from rows import DIRECT, KEYNET, PURE, TLS, Row

GIB = 1 << 30
# Bytes for a run of about half a second of each system.
BULK = {DIRECT: 2 * GIB, TLS: GIB, KEYNET: GIB // 2, PURE: GIB // 24}
MESSAGE = b"m" * 64
BUFFER = bytearray(CHUNK)
SOURCE = memoryview(bytes(CHUNK))


def gigabits(seconds: float) -> float:
    return 8 * GIB / 1e9 / seconds


def micros(seconds: float) -> float:
    return seconds * 1e6


@pytest.mark.parametrize("direction", ["down", "up"])
def test_throughput(measurements, replayed, direction: str):
    def sample(row: Row) -> float:
        size = BULK[row.name] // (32 if measurements.quick else 1)
        with row.connect() as connection:
            connection.sendall(b"E" + (1).to_bytes(8, "big") + b"w")
            exactly(connection, 1)
            start = time.perf_counter()
            if direction == "down":
                connection.sendall(b"D" + size.to_bytes(8, "big"))
                receive(connection, size, BUFFER)
            else:
                connection.sendall(b"U" + size.to_bytes(8, "big"))
                send(connection, size, SOURCE)
                exactly(connection, 1)
            return (time.perf_counter() - start) * GIB / size

    workload = f"throughput {direction}"
    measurements.take(workload, "Gbit/s", gigabits, sample)
    replayed(workload)


def test_both_ways(measurements, replayed):
    """Both directions at full load, from the first byte to the last: their sum.

    Python's TLS is not to be read and written by two threads at once, so that row has a connection for each direction.
    """

    def sample(row: Row) -> float:
        size = BULK[row.name] // (32 if measurements.quick else 1) // 2
        with contextlib.ExitStack() as stack:
            down = stack.enter_context(row.connect())
            up = stack.enter_context(row.connect()) if row.pem else down
            for connection in (down, up):
                connection.sendall(b"E" + (1).to_bytes(8, "big") + b"w")
                exactly(connection, 1)
            count = size.to_bytes(8, "big")
            start = time.perf_counter()
            if row.pem:
                down.sendall(b"D" + count)
            up.sendall((b"U" if row.pem else b"B") + count)
            sending = threading.Thread(target=send, args=(up, size, SOURCE))
            sending.start()
            receive(down, size, BUFFER)
            sending.join()
            exactly(up, 1)
            return (time.perf_counter() - start) * GIB / (2 * size)

    measurements.take("throughput both ways", "Gbit/s", gigabits, sample)
    replayed("throughput both ways")


def test_connect(measurements, replayed):
    """From nothing to the first byte back: TCP, CONNECT, uTP, TLS, Open; keynet may resume TLS sessions."""
    batch = 3 if measurements.quick else 20

    def sample(row: Row) -> float:
        start = time.perf_counter()
        for _ in range(batch):
            with row.connect() as connection:
                connection.sendall(b"E" + (1).to_bytes(8, "big") + b"c")
                exactly(connection, 1)
        return (time.perf_counter() - start) / batch

    measurements.take("connect and first byte", "us", micros, sample)
    replayed("connect and first byte")


def test_round_trip(measurements, replayed):
    batch = 50 if measurements.quick else 1000
    request = b"E" + len(MESSAGE).to_bytes(8, "big") + MESSAGE

    def sample(row: Row) -> float:
        with row.connect() as connection:
            for number in range(batch + 10):
                if number == 10:
                    start = time.perf_counter()
                connection.sendall(request)
                exactly(connection, len(MESSAGE))
            return (time.perf_counter() - start) / batch

    measurements.take("round trip of 64 bytes", "us", micros, sample)
    replayed("round trip of 64 bytes")
