"""The server that the benchmarks load, in a process of its own: raw TCP commands and a gRPC service, each
also with TLS.

Commands are 9 bytes, a letter and a big-endian count: D sends so many bytes, U takes them and answers with
one, B does both at once, E takes them and sends them back. `load_server.py PEM`: key and certificate, trusted
for clients too. Prints its ports as JSON; ends with its standard input.
"""

from __future__ import annotations

import functools
import json
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import suppress
from pathlib import Path

CHUNK = 1 << 20
UNARY, STREAM = "/bench.Bench/Unary", "/bench.Bench/Stream"


def tune(connection: socket.socket) -> None:
    """CUBIC where there is a choice: the loopback rate of BBR, some systems' default, is half of it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


def receive(connection: socket.socket, size: int, buffer: bytearray) -> None:
    """Takes exactly `size` bytes; only the last ones stay in the buffer."""
    view = memoryview(buffer)
    while size:
        got = connection.recv_into(view[: min(size, len(buffer))])
        if not got:
            raise ConnectionResetError("the stream ended early")
        size -= got


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the stream ended early")
        data += more
    return data


def send(connection: socket.socket, size: int, source: memoryview) -> None:
    while size:
        part = min(size, len(source))
        connection.sendall(source[:part])
        size -= part


@functools.lru_cache
def tls_context(server: bool, pem: str) -> ssl.SSLContext:
    """TLS 1.3 with both sides authenticated, as in keynet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pem)
    context.load_verify_locations(pem)
    return context


def serve(connection: socket.socket, tls: ssl.SSLContext | None) -> None:
    tune(connection)
    buffer, source = bytearray(CHUNK), memoryview(bytes(CHUNK))
    with (
        suppress(OSError),
        tls.wrap_socket(connection, server_side=True) if tls else connection as connection,
    ):
        while True:
            command = exactly(connection, 9)
            size = int.from_bytes(command[1:], "big")
            if command[:1] == b"D":
                send(connection, size, source)
            elif command[:1] == b"U":
                receive(connection, size, buffer)
                connection.sendall(b"!")
            elif command[:1] == b"B":
                sending = threading.Thread(target=send, args=(connection, size, source))
                sending.start()
                receive(connection, size, buffer)
                sending.join()
                connection.sendall(b"!")
            else:
                connection.sendall(exactly(connection, size))


def listen(tls: ssl.SSLContext | None = None) -> int:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, tls), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def split_pem(pem: Path) -> tuple[bytes, bytes]:
    """Key and certificate."""
    key, mark, certificate = pem.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
    return key, mark + certificate


def main() -> None:
    pem = Path(sys.argv[1])
    ports = {"tcp": listen(), "tls": listen(tls_context(True, str(pem))), "grpc": 0, "grpc_tls": 0}
    try:
        import grpc
    except ImportError:
        pass
    else:

        def stream(request: bytes, _context: object) -> Iterator[bytes]:
            count, size = (int(part) for part in request.split())
            return iter([bytes(size)] * count)

        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(lambda request, _context: request),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
        }
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bench", handlers),))
        ports["grpc"] = server.add_insecure_port("127.0.0.1:0")
        key, certificate = split_pem(pem)
        credentials = grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
        ports["grpc_tls"] = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
