"""One end of a transfer, as a process of its own inside a namespace.

`receive PORT`: takes one connection and counts; at SIGTERM prints `[[seconds, bytes so far], ...]` as JSON.
`send HOST PORT [CONGESTION]`: connects, prints the moment (CLOCK_MONOTONIC) at which it began to; sends until killed.
`echo PORT` and `probe HOST PORT SECONDS`: round trips of small UDP packets, in milliseconds.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from typing import NoReturn

CHUNK = 256 << 10
# what a slow sender must not become the reason of: 200 ms at 1 Gbit/s and as much in the queue
BUFFER = 64 << 20


def receive(port: int) -> NoReturn:
    listener = socket.create_server(("", port))
    print("ready", flush=True)
    samples: list[tuple[float, int]] = []

    def finish(*_: object) -> NoReturn:
        print(json.dumps(samples), flush=True)
        sys.exit()

    signal.signal(signal.SIGTERM, finish)
    connection, _ = listener.accept()
    buffer = bytearray(CHUNK)
    total, due = 0, 0.0
    while got := connection.recv_into(buffer):
        total += got
        now = time.monotonic()
        if now >= due:
            samples.append((now, total))
            due = now + 0.1
    finish()


def send(host: str, port: int, congestion: str | None) -> None:
    connection = socket.socket()
    if congestion:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    print(time.monotonic(), flush=True)
    connection.connect((host, port))
    data = bytes(CHUNK)
    while True:
        connection.sendall(data)


def echo(port: int) -> None:
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("", port))
    print("ready", flush=True)
    while True:
        data, source = server.recvfrom(2048)
        server.sendto(data, source)


def probe(host: str, port: int, seconds: float) -> None:
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.connect((host, port))
    client.settimeout(1)
    times = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        client.send(repr(began).encode())
        try:
            sent = float(client.recv(64))
            times.append((time.monotonic() - sent) * 1000)
        except TimeoutError:
            continue
        time.sleep(0.02)
    print(json.dumps(times))


def main() -> None:
    match sys.argv[1:]:
        case ["receive", port]:
            receive(int(port))
        case ["send", host, port, *congestion]:
            send(host, int(port), congestion[0] if congestion else None)
        case ["echo", port]:
            echo(int(port))
        case ["probe", host, port, seconds]:
            probe(host, int(port), float(seconds))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
