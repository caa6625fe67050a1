"""The systems that are compared, each as a way to open a connection to the same server."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_server import exactly, split_pem, tls_context, tune

HERE = Path(__file__).resolve().parent
TCP_SERVICE, GRPC_SERVICE = 7, 8
DIRECT, TLS, KEYNET, PURE = "direct TCP", "TCP+TLS", "keynet", "pure Python"


@dataclass
class Row:
    """How a system is entered: addresses (with TLS if there is a `pem`), or a proxy and the node behind."""

    name: str
    tcp: tuple[str, int] | None = None
    grpc: tuple[str, int] | None = None
    proxy: dict[str, Any] | None = None
    node: str = ""
    pem: Path | None = None

    def connect(self) -> socket.socket:
        if self.tcp:
            connection = socket.create_connection(self.tcp)
        else:
            assert self.proxy
            connection = socket.create_connection(tuple(self.proxy["forward"]))
            connection.sendall(connect_head(self.node, self.proxy["credentials"]))
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += exactly(connection, 1)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise ConnectionError(answer.decode())
        tune(connection)
        if self.pem:
            return tls_context(False, str(self.pem)).wrap_socket(connection, server_hostname="localhost")
        return connection

    def channel(self) -> Any:
        import grpc

        if self.grpc and self.pem:
            key, certificate = split_pem(self.pem)
            credentials = grpc.ssl_channel_credentials(certificate, key, certificate)
            options = [("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", "localhost")]
            return grpc.secure_channel("{}:{}".format(*self.grpc), credentials, options)
        if self.grpc:
            return grpc.insecure_channel("{}:{}".format(*self.grpc), [("grpc.enable_http_proxy", 0)])
        assert self.proxy
        url = "http://{}:{}@{}:{}".format(*self.proxy["credentials"], *self.proxy["forward"])
        return grpc.insecure_channel(f"{self.node}.keynet:{GRPC_SERVICE}", [("grpc.http_proxy", url)])


def connect_head(node: str, credentials: Iterable[str]) -> bytes:
    """What a client sends to a proxy to reach the TCP service of a node."""
    secret = base64.b64encode(":".join(credentials).encode()).decode()
    target = f"{node}.keynet:{TCP_SERVICE}"
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {secret}\r\n\r\n".encode()


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program with pipes, ended by closing its standard input, at the latest killed."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield process
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def said(process: subprocess.Popen[str]) -> Any:
    line = process.stdout.readline()  # type: ignore[union-attr]
    if not line:
        raise RuntimeError(f"{process.args} ended")
    return json.loads(line)


def make_certificate(pem: Path) -> None:
    """A key and a certificate for `localhost`; ECDSA, because gRPC's TLS takes no Ed25519."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate)


@contextlib.contextmanager
def nodes(name: str, command: list[str], directory: Path, ports: dict[str, int]) -> Iterator[Row]:
    """Two nodes in two processes, the second in front of the server."""
    directory.mkdir()
    services = [f"{TCP_SERVICE}=127.0.0.1:{ports['tcp']}", f"{GRPC_SERVICE}=127.0.0.1:{ports['grpc']}"]
    options = [word for service in services for word in ("--service", service)]
    with (
        program(*command, str(directory / "b.pem"), *options) as b,
        program(*command, str(directory / "a.pem")) as a,
    ):
        behind, front = said(b), said(a)
        a.stdin.write(f"{behind['node']} 127.0.0.1 {behind['proxy'][1]}\n")  # type: ignore[union-attr]
        a.stdin.flush()  # type: ignore[union-attr]
        a.stdout.readline()  # type: ignore[union-attr]
        yield Row(name, proxy=front, node=behind["node"])


@contextlib.contextmanager
def all_rows(directory: Path, with_core: bool) -> Iterator[list[Row]]:
    with contextlib.ExitStack() as stack:
        pem = directory / "server.pem"
        make_certificate(pem)
        ports = said(stack.enter_context(program(str(HERE / "load_server.py"), str(pem))))
        at = {name: ("127.0.0.1", port) for name, port in ports.items()}
        rows = [Row(DIRECT, at["tcp"], at["grpc"]), Row(TLS, at["tls"], at["grpc_tls"], pem=pem)]
        if with_core:
            command = [str(HERE / "keynet_node.py")]
            rows.append(stack.enter_context(nodes(KEYNET, command, directory / "keynet", ports)))
        rows.append(stack.enter_context(nodes(PURE, ["-m", "pure_python"], directory / "pure", ports)))
        yield rows
