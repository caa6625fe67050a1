"""The command, run as people and programs run it."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import sys
from typing import Any

import pytest

import keynet
import keynet.grpc
from keynet import _keynet
from keynet.cli import ExitCode, _code
from keynet.cli._common import add_finding, finding
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from keynet.demo.run import Process
from keynet.errors import _from_core
from support import SERVICE, greeter, sync_proxy


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keynet", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_lists_every_exit_code() -> None:
    done = command("--help")
    assert done.returncode == 0
    listed = {int(code) for code in re.findall(r"^  (\d+) +", done.stdout, re.MULTILINE)}
    assert listed == {code for name, code in vars(ExitCode).items() if name.isupper()}
    for name in ("id", "up", "status", "ping", "doctor", "forward", "rendezvous", "demo"):
        assert re.search(rf"^ +{name}\s", done.stdout, re.MULTILINE)
        assert command(name, "--help").returncode == 0


def test_version() -> None:
    assert command("--version").stdout.strip() == f"keynet {keynet.__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["ping"],
        ["ping", "nobody", "127.0.0.1:1"],
        ["forward", "vb1" + "j6cp" * 12 + "j0", "99999", "--address", "127.0.0.1:1"],
        ["up", "--service", "nonsense"],
        ["up", "--service", "1=127.0.0.1:1"],
        ["up", "--service", "x=127.0.0.1:1"],
        ["up", "--listen", "nowhere"],
        ["up", "--config", "/nonexistent.toml"],
        ["up", "--peer", "nobody=127.0.0.1:1"],
        ["up", "--rendezvous", "127.0.0.1:7348"],
        ["up", "--stun", "stun.example.org"],
        ["ping", "vb1" + "j6cp" * 12 + "j0"],
        ["forward", "vb1" + "j6cp" * 12 + "j0", "50051"],
        ["status", "nobody"],
        ["status", "--identity", "a", "--socket", "b"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], tmp_path: pathlib.Path) -> None:
    done = command(*arguments, XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_id(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    assert command("id", "--show", str(path)).returncode == ExitCode.IDENTITY
    (made,) = objects(command("id", str(path), "--json"))
    assert (made["action"], made["file"], made["older_node_ids"]) == ("made", str(path), [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keynet.Identity.load(path).node_id == made["node_id"]
    assert command("id", "-q", str(path)).stdout.strip() == made["node_id"]
    assert made["node_id"] in command("id", str(path)).stdout
    (renewed,) = objects(command("id", "--renew", str(path), "--json"))
    assert (renewed["action"], renewed["node_id"]) == ("renewed", made["node_id"])
    (rotated,) = objects(command("id", "--rotate", str(path), "--json"))
    assert (rotated["action"], rotated["older_node_ids"]) == ("rotated", [made["node_id"]])
    assert keynet.Identity.load(path).node_ids == (rotated["node_id"], made["node_id"])


def test_the_default_identity(tmp_path: pathlib.Path) -> None:
    (made,) = objects(command("id", "--json", XDG_CONFIG_HOME=str(tmp_path)))
    assert made["file"] == str(tmp_path / "keynet" / "identity.pem")
    (read,) = objects(command("id", "--json", "--show", XDG_CONFIG_HOME=str(tmp_path)))
    assert read["node_id"] == made["node_id"]


def test_an_exposed_identity(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    keynet.Identity.generate().save(path)
    path.chmod(0o644)
    human, machine = command("id", str(path)), command("id", str(path), "--json")
    assert human.returncode == machine.returncode == ExitCode.IDENTITY
    assert "chmod 600" in human.stderr
    (said,) = objects(machine)
    assert said["error"]["reason"] == "identity_exposed"
    assert said["error"]["advice"]
    assert machine.stderr == ""


def test_ping(bob: keynet.Identity, host: str) -> None:
    with sync_proxy(bob, host, services={SERVICE: "127.0.0.1:1"}, allow=keynet.ANYONE) as node:
        done = command("ping", bob.node_id, node.proxy_address, "--json")
        assert done.returncode == 0, done.stderr
        (said,) = objects(done)
        assert said["ping"]["node_id"] == bob.node_id
        assert said["ping"]["address"] == node.proxy_address
        assert said["ping"]["rtt"] > 0
        human = command("ping", bob.node_id, node.proxy_address)
        assert human.returncode == 0
        assert "round trip" in human.stdout
        assert "TLS" in human.stdout


def test_ping_another_node(bob: keynet.Identity, mallory: keynet.Identity) -> None:
    with sync_proxy(bob) as node:
        done = command("ping", mallory.node_id, node.proxy_address, "--json")
        assert done.returncode == ExitCode.WRONG_PEER
        (said,) = objects(done)
        assert (said["error"]["reason"], said["error"]["stage"]) == ("identity_mismatch", "tls")
        human = command("ping", mallory.node_id, node.proxy_address)
        assert human.returncode == ExitCode.WRONG_PEER
        assert "stage   tls" in human.stderr


def test_ping_nobody(bob: keynet.Identity) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = command("ping", bob.node_id, address, "--timeout", "0.5", "--json")
    assert done.returncode == ExitCode.UNREACHED
    (said,) = objects(done)
    assert said["error"]["stage"] in ("punch", "utp")
    assert said["error"]["node_id"] == bob.node_id


@pytest.mark.parametrize("address", ["[::]:4433", "0.0.0.0:4433", "224.0.0.1:4433"])
def test_ping_no_host(bob: keynet.Identity, address: str) -> None:
    done = command("ping", bob.node_id, address, "--json")
    assert done.returncode == ExitCode.UNREACHED
    (said,) = objects(done)
    assert (said["error"]["reason"], said["error"]["address"]) == ("unreachable", address)


def test_control_c_is_clean(bob: keynet.Identity) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "keynet",
                "ping",
                bob.node_id,
                f"127.0.0.1:{silent.getsockname()[1]}",
                "--timeout",
                "60",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(30)
        silent.recv(2000)  # it has begun
        child.send_signal(signal.SIGINT)
        _, complaints = child.communicate(timeout=30)
    assert child.returncode == ExitCode.INTERRUPTED
    assert re.fullmatch(r"this is v\w{52} \(made for this run\)\n", complaints)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_up_and_forward(alice: keynet.Identity, tmp_path: pathlib.Path, number: signal.Signals) -> None:
    """A node from a TOML file, another from flags, and a plain client between them."""
    caller = tmp_path / "caller.pem"
    alice.save(caller)
    with greeter("127.0.0.1:0") as backend:
        config = tmp_path / "node.toml"
        config.write_text(
            f"""
            identity = "server.pem"
            listen = "127.0.0.1:0"
            allow = ["{alice.node_id}"]
            [services]
            {SERVICE} = "{backend}"
            [limits]
            dial_timeout = 10
            """
        )
        with Process("keynet", "up", "--config", str(config), "--json") as server:
            ready = server.expect("ready")
            node = keynet.Identity.load(tmp_path / "server.pem").node_id
            assert ready["node_id"] == node
            assert ready["services"] == {str(SERVICE): backend}
            ours = ["--identity", str(caller), "--listen", "127.0.0.1:0"]
            with Process(
                "keynet", "forward", node, str(SERVICE), "-a", ready["proxy_address"], "--json", *ours
            ) as local:
                import grpc

                address = local.expect("ready")["local"]
                with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
                    # the server runs in this process, beside no proxy that vouches for the caller
                    with pytest.raises(grpc.RpcError) as caught:
                        rpc.GreeterStub(channel).SayHello(pb.HelloRequest(name="Ada"), timeout=30)
                    assert caught.value.code() is grpc.StatusCode.UNKNOWN
                    assert "UnknownPeer" in caught.value.details() or "did not come through" in caught.value.details()
                opened = server.expect("connection_opened")["connection"]
                assert (opened["node_id"], opened["server_address"]) == (alice.node_id, backend)
                local._process.send_signal(number)
                assert [line["event"] for line in local.lines()][-1] == "closed"
                local.finish()
            server._process.send_signal(number)
            assert [line["event"] for line in server.lines()][-1] == "closed"
            server.finish()


def test_up_for_people(tmp_path: pathlib.Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "keynet", "up", "--identity", str(tmp_path / "n.pem"), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KEYNET_CREDENTIALS": "me:secret"},
    )
    assert child.stdout is not None
    with child:
        head = []
        for line in child.stdout:
            head.append(line.rstrip())
            if head[-1] == "ready":
                break
        text = "\n".join(head)
        assert keynet.Identity.load(tmp_path / "n.pem").node_id in text
        assert "http://me:secret@127.0.0.1:" in text
        child.send_signal(signal.SIGINT)
        out, complaints = child.communicate(timeout=30)
        assert (child.returncode, complaints) == (0, "")
        assert "closed" in out


def test_an_unknown_key_in_the_file(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('lisden = "[::]:0"\n')
    done = command("up", "--config", str(config), XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert "lisden" in done.stderr


NODE = "vb1" + "j6cp" * 12 + "j0"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f'[peers]\n"{NODE}" = "127.0.0.1:4433"', "not a list"),
        (f'[peers]\n"{NODE}" = [4433]', "not a list"),
        ("allow = [1]", "allow"),
        ("rendezvous = [7348]", "rendezvous"),
        (f'rendezvous = "{NODE}@127.0.0.1:7348"', "rendezvous"),
        ('rendezvous = ["127.0.0.1:7348"]', "<node id>@host:port"),
        ('stun = ["x"]', "stun"),
        ('lan = "yes"', "lan"),
        ("search_ports = 1", "search_ports"),
        ('[limits]\ndial_timeout = "x"', "dial_timeout"),
        ('listen = "localhost:4433"', "not a name"),
    ],
)
def test_a_wrong_value_in_the_file_is_named(text: str, wanted: str, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(text)
    done = command("up", "--config", str(config), XDG_CONFIG_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_expecting_a_node_without_an_address(tmp_path: pathlib.Path) -> None:
    done = command("up", "--expect", NODE, XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert f"--peer {NODE}=" in done.stderr


def settings(arguments: list[str], table: dict[str, Any] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_finding(parser)
    return finding(parser.parse_args(arguments), table)


def test_how_a_node_is_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYNET_RENDEZVOUS", raising=False)
    monkeypatch.delenv("KEYNET_RELAYS", raising=False)
    nothing = {"rendezvous": [], "stun": [], "lan": False, "port_mapping": True, "relays": [], "direct_only": False}
    assert settings([]) == nothing
    monkeypatch.setenv("KEYNET_RELAYS", "turn:u:p@a, turn:u:p@b")
    assert settings([])["relays"] == ["turn:u:p@a", "turn:u:p@b"]
    assert settings(["--relay", "turn:u:p@c"])["relays"] == ["turn:u:p@c"]
    assert settings(["--direct-only"])["direct_only"] is True
    monkeypatch.delenv("KEYNET_RELAYS")
    monkeypatch.setenv("KEYNET_RENDEZVOUS", " a@h:1, b@h:2,")
    assert settings([])["rendezvous"] == ["a@h:1", "b@h:2"]
    # what is said takes the place of what is only there
    assert settings(["--rendezvous", "c@h:3", "--rendezvous", "d@h:4"])["rendezvous"] == ["c@h:3", "d@h:4"]
    table = {"rendezvous": ["e@h:5"], "stun": ["s:1"], "lan": True, "port_mapping": False}
    assert settings([], table) == {**nothing, **table}
    assert settings(["--rendezvous", "f@h:6", "--stun", "t:2"], table)["rendezvous"] == ["e@h:5", "f@h:6"]
    assert settings(["--stun", "t:2"], table)["stun"] == ["s:1", "t:2"]
    assert settings(["--lan", "--no-port-mapping"])["lan"] is True
    assert settings(["--no-port-mapping"], {"port_mapping": True})["port_mapping"] is False


@pytest.mark.parametrize("arguments", [["id"], ["up"]], ids=" ".join)
def test_no_folder_for_the_default_identity(arguments: list[str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    done = command(*arguments, XDG_CONFIG_HOME=str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (ExitCode.IDENTITY, "")
    assert "--identity" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_in_use(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command("up", "--identity", str(tmp_path / "n.pem"), "--forward", address, "--json")
    assert done.returncode == ExitCode.BIND
    (said,) = objects(done)
    assert said["error"]["reason"] == "bind_failed"


def test_nobody_reads(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m keynet id {tmp_path}/n.pem | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("invalid_argument", ExitCode.USAGE),
        ("identity_exposed", ExitCode.IDENTITY),
        ("bind_failed", ExitCode.BIND),
        ("unknown_node", ExitCode.UNREACHED),
        ("punch_timeout", ExitCode.UNREACHED),
        ("connect_refused", ExitCode.UNREACHED),
        ("rendezvous_unreachable", ExitCode.UNREACHED),
        ("peer_offline", ExitCode.UNREACHED),
        ("both_symmetric", ExitCode.UNREACHED),
        ("peer_lost", ExitCode.UNREACHED),
        ("identity_mismatch", ExitCode.WRONG_PEER),
        ("certificate_expired", ExitCode.WRONG_PEER),
        ("chain_broken", ExitCode.WRONG_PEER),
        ("access_denied", ExitCode.DENIED),
        ("service_not_found", ExitCode.DENIED),
        ("service_refused", ExitCode.DENIED),
        ("peer_busy", ExitCode.DENIED),
        ("internal", ExitCode.INTERNAL),
        ("proxy_closed", ExitCode.FAILED),
    ],
)
def test_reasons_have_the_exit_codes_that_the_help_lists(reason: str, code: int) -> None:
    assert _code(_from_core(reason, "setup", None, None, "", "")) == code


def link_local() -> str | None:
    """An address of this machine that only means something with its interface: "fe80::1%eth0"."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as lines:
        for line in lines:
            raw, _, _, scope, _, name = line.split()
            if scope == "20":
                return f"{ipaddress.ip_address(int(raw, 16))}%{name}"
    return None


@pytest.mark.ipv6
def test_a_link_local_address_with_its_interface(alice: keynet.Identity, bob: keynet.Identity) -> None:
    """To listen at, to dial, and to ask as a STUN server."""
    scoped = link_local()
    if scoped is None:
        pytest.skip("no interface has a link-local address")
    stun = _keynet.StunServer.bind([f"[{scoped}]:0"], None)
    with (
        keynet.sync.Proxy(bob, listen=f"[{scoped}]:0") as there,
        keynet.sync.Proxy(alice, listen="[::]:0") as here,
    ):
        port = there.proxy_address.rpartition(":")[2]
        here.add_peer(bob.node_id, [f"[{scoped}]:{port}"])
        assert here.ping(bob.node_id).node_id == bob.node_id
        asked = f"[{scoped}]:{stun.addresses()[0].rpartition(':')[2]}"
        assert _keynet.discover([asked], 20.0, None)["external"] == scoped.partition("%")[0]
    stun.close(None)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("[fe80::1]:4433", 'link-local: say by which interface, "[fe80::1%eth0]:4433"'),
        ("[fe80::1%no-such]:4433", "no interface 'no-such'"),
    ],
)
def test_a_link_local_address_that_is_none_here(address: str, said: str, tmp_path: pathlib.Path) -> None:
    for flag in ("--listen", "--forward", "--metrics"):
        done = command("up", "--identity", str(tmp_path / "n.pem"), flag, address)
        if flag != "--metrics":
            assert said in done.stderr, done
        assert done.returncode in (ExitCode.USAGE, ExitCode.BIND)
        assert "Traceback" not in done.stderr
