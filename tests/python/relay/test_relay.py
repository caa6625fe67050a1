"""`keynet.relay.RelayServer` and `keynet relay`."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import keynet
from keynet import _keynet
from keynet.cli import ExitCode
from keynet.demo.run import Process
from keynet.errors import BindError, InvalidArgument, ProxyClosedError
from keynet.relay import RelayLimits, RelayServer
from turn_clients import PASSWORD, USER, echo, loopback_relay, needs_uclient, port_of, uclient


def test_every_limit_of_the_core_is_typed() -> None:
    assert set(RelayLimits.__annotations__) == set(_keynet.relay_limit_names())


@pytest.mark.parametrize("name", _keynet.relay_limit_names())
async def test_every_limit_can_be_set(name: str) -> None:
    async with loopback_relay(limits={name: 5}) as relay:
        assert relay.stats()["allocations"] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"users": {}}, "nobody could use"),
        ({"listen": "localhost:1"}, "listen"),
        ({"listen": ()}, "1 to 16"),
        ({"realm": 'a"b'}, "realm"),
        ({"realm": ""}, "realm"),
        ({"ports": (10, 9)}, "ports"),
        ({"allowed_peers": ["10.0.0.0/33"]}, "allowed_peers"),
        ({"external_addresses": ["192.0.2.1", "192.0.2.2"]}, "external_addresses"),
        ({"relay_addresses": ["0.0.0.0"]}, "relay_addresses"),
        ({"introduction_peers": ["x"]}, "introduction_peers"),
        ({"tls": "127.0.0.1:0"}, "certificate"),
        ({"limits": {"max_allocations": 0}}, "max_allocations"),
        ({"limits": {"no_such": 1}}, "no_such"),
    ],
)
async def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        async with loopback_relay(**options):
            pass


async def test_a_port_in_use_is_said() -> None:
    async with loopback_relay() as relay:
        with pytest.raises(BindError) as raised:
            async with loopback_relay(listen=relay.addresses[0]):
                pass
        assert raised.value.address == relay.addresses[0]


async def test_before_and_after() -> None:
    relay = loopback_relay()
    with pytest.raises(ProxyClosedError):
        relay.stats()
    await relay.close()
    await relay.start()
    with pytest.raises(InvalidArgument, match="before"):
        await relay.start()
    await relay.close()
    await relay.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port_of(relay.addresses[0])))


def test_a_certificate_that_is_none(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.pem"
    with pytest.raises(InvalidArgument, match="cannot be read"):
        RelayServer(users={"a": "b"}, tls="127.0.0.1:0", certificate=(file, file))


async def test_a_certificate_without_content(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.pem"
    file.write_text("nothing")
    with pytest.raises(InvalidArgument, match="there is none"):
        async with loopback_relay(tls="127.0.0.1:0", certificate=(file, file)):
            pass


@needs_uclient
async def test_new_users_replace_the_old() -> None:
    async with echo("127.0.0.1") as peer, loopback_relay(users={"somebody": "else"}) as relay:
        port = port_of(relay.addresses[0])
        await uclient("127.0.0.1", port, peer, messages=1)
        assert relay.stats()["auth_failures"] > 0
        assert relay.stats()["allocated"] == 0
        relay.set_users({USER: PASSWORD})
        await uclient("127.0.0.1", port, peer, messages=1)
        assert relay.stats()["datagrams_to_clients"] == 2


@needs_uclient
async def test_names_that_end() -> None:
    async with echo("127.0.0.1") as peer, loopback_relay(users={}, secret="shared") as relay:
        # -W: coturn's client makes the name and the password itself
        output = await uclient("127.0.0.1", port_of(relay.addresses[0]), peer, "-W", "shared", messages=1)
        assert relay.stats()["datagrams_to_clients"] == 2, output


@needs_uclient
async def test_one_secret_follows_another() -> None:
    async with echo("127.0.0.1") as peer, loopback_relay(users={}, secret=["new", "old"]) as relay:
        port = port_of(relay.addresses[0])
        for secret in ("old", "new"):
            await uclient("127.0.0.1", port, peer, "-W", secret, messages=1)
        taken = relay.stats()
        assert (taken["datagrams_to_clients"], taken["auth_failures"]) == (4, 0)
        relay.set_secret("new")
        await uclient("127.0.0.1", port, peer, "-W", "old", messages=1)
        assert relay.stats()["allocated"] == taken["allocated"]
        assert relay.stats()["auth_failures"] > 0
        with pytest.raises(keynet.InvalidArgument, match="4 at most"):
            relay.set_secret(["a", "b", "c", "d", "e"])
        with pytest.raises(keynet.InvalidArgument, match="empty"):
            relay.set_secret("")


def test_secrets_in_a_file_are_a_line_each(tmp_path: pathlib.Path) -> None:
    from keynet.cli._relay import _secret

    file = tmp_path / "secret"
    file.write_text("new\n\n old \n")
    file.chmod(0o600)
    assert _secret(file, {}) == ["new", "old"]
    assert _secret(None, {"KEYNET_RELAY_SECRET": "one"}) == ["one"]
    assert _secret(None, {"KEYNET_RELAY_SECRET": ""}) is None


@needs_uclient
async def test_peers_are_off_limits_unless_allowed() -> None:
    async with echo("127.0.0.1") as peer, loopback_relay(allowed_peers=[]) as relay:
        await uclient("127.0.0.1", port_of(relay.addresses[0]), peer, messages=1)
        assert relay.stats()["forbidden"] > 0
        assert not peer.senders


@needs_uclient
async def test_two_clients_meet_at_their_relayed_addresses() -> None:
    # coturn's -y: clients talk to each other, which needs no address to be allowed
    async with echo("127.0.0.1") as peer, loopback_relay(allowed_peers=[]) as relay:
        output = await uclient("127.0.0.1", port_of(relay.addresses[0]), peer, "-y", messages=3)
        assert relay.stats()["datagrams_to_clients"] == 6, output


@pytest.mark.ipv6
def test_the_command_runs_and_ends(tmp_path: pathlib.Path) -> None:
    flags = [
        "--listen",
        "127.0.0.1:0",
        "--tls",
        "[::1]:0",
        "--identity",
        str(tmp_path / "i.pem"),
        "--user",
        "a=b",
        "--json",
    ]
    with Process("keynet", "relay", "--json", *flags) as running:
        ready = running.expect("ready")
        assert ready["addresses"][0].startswith("127.0.0.1:")
        assert ready["tls_addresses"][0].startswith("[::1]:")
        assert ready["relayed_addresses"] == ["127.0.0.1"]
        running._process.send_signal(signal.SIGINT)
        closed = running.expect("closed")
        assert closed["allocations"] == 0
        running.finish()


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ([], ExitCode.USAGE, "nobody could use"),
        (["--user", "a"], ExitCode.USAGE, "NAME=PASSWORD"),
        (["--user", "a=b", "--ports", "9-3"], ExitCode.USAGE, "FIRST-LAST"),
        (["--user", "a=b", "--secret-file", "/nonexistent"], ExitCode.USAGE, "cannot be read"),
        (["--user", "a=b", "--allow-peer", "x"], ExitCode.USAGE, "--allow-peer"),
    ],
)
def test_the_command_says_what_is_wrong(flags: list[str], code: int, says: str) -> None:
    done = _command("--listen", "127.0.0.1:0", *flags)
    assert done.returncode == code
    assert says in done.stderr


def test_the_command_says_that_a_port_is_in_use() -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = _command("--listen", address, "--user", "a=b")
    assert done.returncode == ExitCode.BIND
    assert address in done.stderr


def _command(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keynet", "relay", *flags], capture_output=True, text=True, timeout=60, check=False
    )


async def test_an_identity_is_shown_on_tls(alice: keynet.Identity) -> None:

    async with loopback_relay(tls="127.0.0.1:0", identity=alice) as relay:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(relay.tls_addresses[0]), ssl=context)
        shown = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True))
        key = shown.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        assert keynet.NodeId.from_public_key(key) == alice.node_id
        writer.close()
        del reader
