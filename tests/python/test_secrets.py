"""No error, log line, repr or status holds a piece of a secret that was given, however wrongly it was given."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pathlib
import random
import string
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import keynet
import keynet.relay
from keynet.cli import main
from keynet.rendezvous import Relay, Server

PIECE = 8
LETTERS = string.ascii_letters + string.digits


def secret(random: random.Random) -> str:
    return "".join(random.choice(LETTERS) for _ in range(random.randrange(12, 40)))


def pieces(secret: str) -> Iterator[str]:
    return (secret[at : at + PIECE] for at in range(len(secret) - PIECE + 1))


def shows(text: str, secret: str) -> bool:
    return any(piece in text for piece in pieces(secret))


def mangled(random: random.Random, text: str) -> str:
    """What happens to texts on their way through variables, YAML and shells."""
    changes: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: text.replace("\n", "\\n"),
        lambda text: text.replace("\n", " "),
        lambda text: text.replace("\n", ""),
        lambda text: text.replace("-----\n", "-----"),
        lambda text: text.replace("-----", "----"),
        lambda text: f'"{text}"',
        lambda text: text[random.randrange(len(text)) :],
        lambda text: text[: random.randrange(1, len(text) + 1)],
        lambda text: text.replace("@", "%"),
        lambda text: text.replace(":", ";"),
        lambda text: text.replace("//", ""),
        lambda text: text.replace("@", "?x@"),
        lambda text: text + "/?=%zz",
        lambda text: text.upper() if "://" not in text else text.replace("://", ":"),
        lambda text: "é" + text,
    ]
    for _ in range(random.randrange(1, 3)):
        text = random.choice(changes)(text)
    return text


def everything(password: str, key: str, pem: str, random: random.Random) -> Iterator[tuple[Callable[[], object], str]]:
    """What takes a secret, and the secret."""
    identity = keynet.Identity.generate()

    def proxy(**options: object) -> Callable[[], object]:
        return lambda: repr(keynet.Proxy(identity, **options))  # type: ignore[arg-type]

    uri = mangled(random, f"turn:alice:{password}@relay.example.org:3478")
    tls = mangled(random, f"turns:alice:{password}@relay.example.org?key=x")
    url = mangled(random, f"tls://alice:{password}@nats.example.org:4222")
    yield lambda: repr(keynet.Identity.from_pem(mangled(random, pem))), key
    # a key in the place of the name of a file
    for text in (pem, pem.replace("\n", "\\n"), pem.replace("\n", " "), key, mangled(random, pem)):
        if len(text) > 40:
            yield lambda text=text: repr(keynet.Identity.load(text)), key
            yield lambda text=text: repr(keynet.Identity.load_or_create(f"nowhere/{text}")), key
            yield lambda text=text: asyncio.run(relay((text, text))), key
    for given in (uri, tls, url):
        yield proxy(relays=[given]), password
        yield proxy(rendezvous=[given]), password
        yield proxy(stun=[given]), password
        yield proxy(listen=given), password
        yield proxy(controller=given), password
        yield proxy(services={1: given}, allow=keynet.ANYONE), password
        yield lambda given=given: repr(Relay([given], "shared")), password
        yield lambda given=given: keynet.NodeId(given), password
        yield lambda given=given: keynet.relay.RelayServer(users={"a": password}, listen=given), password
    yield proxy(credentials=(f"a:{password}", "b")), password
    yield proxy(credentials=("a", password + "\n")), password
    yield proxy(credentials=("a", password, "b")), password
    yield proxy(relays=[mangled(random, pem)]), key
    yield lambda: keynet.NodeId(mangled(random, pem)), key
    yield lambda: repr(Server(identity, nats=url)), password
    yield lambda: repr(Relay(["turn:relay"], password)), password


async def relay(certificate: tuple[str, str]) -> None:
    options = {"listen": "127.0.0.1:0", "tls": ["127.0.0.1:0"], "users": {"a": "b"}}
    async with keynet.relay.RelayServer(certificate=certificate, **options):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("seed", range(20))
def test_no_error_shows_a_piece_of_a_secret(
    seed: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    chance = random.Random(seed)
    pem = keynet.Identity.generate().to_pem()
    key = pem.split("-----")[2].strip().replace("\n", "")
    refused = 0
    for work, given in everything(secret(chance), key, pem, chance):
        try:
            said = str(work())
        except Exception as error:
            refused += 1
            said = f"{error} {error!r} {getattr(error, 'detail', '')}"
        assert not shows(said, given), said
    assert refused > 10
    for given in (key,):
        assert not shows(caplog.text, given)


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


PASSWORD = "Tq8vXw3LmZp5Rk7N"


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["relay", "--user", PASSWORD], {}),
        (["relay", "--usr", f"a={PASSWORD}"], {}),
        (["relay", f"--us=a={PASSWORD}", "--wrong"], {}),
        (["relay"], {"KEYNET_RELAY_USERS": f"alice:{PASSWORD}"}),
        (["relay", "--listen", f"alice:{PASSWORD}@x", "--user", "a=b"], {}),
        (["up", "--realy", f"turn:alice:{PASSWORD}@relay"], {}),
        (["up", "--relay", f"turn:alice:{PASSWORD}@re lay"], {}),
        (["up", f"turn:alice:{PASSWORD}@relay"], {}),
        ([f"turn:alice:{PASSWORD}@relay"], {}),
        (["up", "--rendezvous", f"nats://alice:{PASSWORD}@host:1"], {}),
        (["up", "--service", f"http://alice:{PASSWORD}@host"], {}),
        (["up", "--peer", f"http://alice:{PASSWORD}@host"], {}),
        (["up"], {"KEYNET_CREDENTIALS": PASSWORD}),
        (["up"], {"KEYNET_RELAYS": f"turn://alice:{PASSWORD}@relay"}),
        (["ping", "vb1" + "j6cp" * 12 + "j0", "h:1"], {"https_proxy": f"http://alice:{PASSWORD}@pro xy:1"}),
        (["rendezvous", "--nats", f"http://alice:{PASSWORD}@host"], {}),
        (["rendezvous", "--turn", f"turn:alice:{PASSWORD}@host"], {"KEYNET_TURN_SECRET": "x"}),
        (["up", f"--json={PASSWORD}"], {}),
        (["status", "--socket", f"/{PASSWORD[:2]}", "--interval", f"alice:{PASSWORD}@x"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_complaint_of_the_command_shows_a_password(
    arguments: list[str], environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    for more in ([], ["--json"]):
        done = command(*arguments, *more, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path), **environment)
        assert done.returncode != 0
        assert not shows(done.stdout + done.stderr, PASSWORD), done
        assert "Traceback" not in done.stderr
        if more:
            assert json.loads(done.stdout)["error"]["reason"] == "invalid_argument"


FILES = (
    "id",
    "id --show",
    "up --identity",
    "up --config",
    "status --identity",
    "status --socket",
    "relay --secret-file",
    "relay --user a=b --tls 127.0.0.1:0 --identity",
)


@pytest.mark.parametrize("arguments", FILES)
@pytest.mark.parametrize("form", ["as it is", "one line", "escaped", "body"])
def test_a_key_in_the_place_of_the_name_of_its_file_is_not_shown(
    arguments: str,
    form: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pem = keynet.Identity.generate().to_pem()
    key = pem.split("-----")[2].strip()
    forms = {"one line": pem.replace("\n", " "), "escaped": pem.replace("\n", "\\n"), "body": f"x/{key}"}
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--json"]):
        assert main([*arguments.split(), forms.get(form, pem), *more]) in (1, 2, 3)
    said = capsys.readouterr()
    assert "cannot be" in said.err or "No such" in said.err or "too long" in said.err
    assert not shows(said.out + said.err, key)
    assert "Traceback" not in said.err


async def test_a_status_names_relays_without_their_passwords() -> None:
    relays = [f"turn:alice:{PASSWORD}@127.0.0.1:9"]
    async with keynet.Proxy(keynet.Identity.generate(), listen="127.0.0.1:0", relays=relays) as proxy:
        assert not shows(f"{proxy.status()} {proxy!r}", PASSWORD)
        await proxy.close(drain=False)
