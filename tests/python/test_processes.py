"""Nodes in processes of their own: the demo, and a peer that is killed."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2

import keynet
import keynet.grpc
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from keynet.demo.run import Process
from support import SERVICE, sync_proxy


@pytest.mark.parametrize("flags", [[], ["--ipv6"]], ids=["ipv4", "ipv6"])
def test_the_demo(flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keynet", "demo", "--json", "--calls", "20", "--mebibytes", "2", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # whatever the user has set for other programs and other nodes
        env={**os.environ, "no_proxy": "*", "http_proxy": "http://127.0.0.1:9", "KEYNET_RENDEZVOUS": "nonsense"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    said = [json.loads(line) for line in done.stdout.splitlines()]
    calls = {line["call"]: line["said"] for line in said if line["event"] == "call"}
    assert calls == {
        "unary": "Hello, first!",
        "server stream": [5, 4, 3, 2, 1],
        "client stream": 5050,
        "both streams": ["Hello, Ada!", "Hello, Grace!", "Hello, Barbara!"],
    }
    measured = [line for line in said if line["event"] == "measured"]
    assert len(measured) == 4
    assert all(line["keynet"] > 0 and line["direct"] > 0 for line in measured)
    assert said[-1]["event"] == "done"


def test_a_peer_that_is_killed(alice: keynet.Identity, tmp_path: pathlib.Path) -> None:
    """Its clients fail with UNAVAILABLE instead of hanging, and an event says why."""
    server_file = tmp_path / "server.pem"
    server = keynet.Identity.load_or_create(server_file)
    with (
        Process("keynet.demo.server") as greeter,
        Process(
            "keynet",
            *("up", "--json", "--identity", str(server_file), "--listen", "127.0.0.1:0"),
            *("--service", f"{SERVICE}={greeter.expect('ready')['address']}", "--allow", alice.node_id),
        ) as node,
        sync_proxy(alice) as a,
    ):
        a.add_peer(server.node_id, [node.expect("ready")["proxy_address"]])
        events = a.events()
        with keynet.grpc.channel(a, server.node_id, SERVICE) as channel:
            stub = rpc.GreeterStub(channel)
            assert stub.SayHello(pb.HelloRequest(name="Ada"), timeout=30).message == "Hello, Ada!"
            going = threading.Event()

            def endless() -> object:
                yield pb.HelloRequest(name="Ada")
                going.wait(60)

            replies = stub.Chat(endless(), timeout=60)
            assert next(replies).message == "Hello, Ada!"
            os.kill(node.pid, signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                next(replies)
            noticed = time.monotonic() - killed
            going.set()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            # 10 s are promised; a machine that is busy with other tests gets more
            assert noticed < 30
            while not isinstance(event := events.next(30), keynet.PeerLost):
                pass
            assert event.node_id == server.node_id
            assert event.reason is keynet.Reason.PEER_GONE
            assert a.connections() == []


def test_the_generated_code_is_that_of_the_proto(tmp_path: pathlib.Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    package = pathlib.Path(keynet.__file__).parent
    out = tmp_path / "set.bin"
    source = package / "demo" / "greeter.proto"
    assert protoc.main(["protoc", f"-I{package.parent}", f"--descriptor_set_out={out}", str(source)]) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    for message in file.message_type:  # protoc writes these into files only
        for field in message.field:
            field.ClearField("json_name")
    committed = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(committed)
    assert committed == file
