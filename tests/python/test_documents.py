"""Every code block of the documents runs as it stands; only its placeholders are filled in."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import http.server
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import documents
import grpc
import grpc.aio
import pytest
from documents import ROOT, Block, Surroundings

import keynet
import keynet.grpc
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from keynet.demo.run import Process
from keynet.demo.server import Greeter
from support import greeter, proxy

sys.path.insert(0, str(pathlib.Path(__file__).parent / "rendezvous"))
from nodes import nats_server

# a guard against hangs, not a measure
HANG = 120


# -- what the blocks find ----------------------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a page\n")

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, no_home_of_the_user: None) -> Iterator[Surroundings]:
    """A rendezvous, a node with a gRPC and a web server behind it, and a node that calls it."""
    folder = tmp_path_factory.mktemp("place")
    common = ["--json", "--listen", "127.0.0.1:0", "--identity"]
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(nats_server(folder))
        meeting = stack.enter_context(Process("keynet", "rendezvous", *common, str(folder / "r.pem")))
        rendezvous = meeting.expect("ready")["rendezvous"]
        # it runs beside no proxy that could tell who calls, and does not ask
        backend = stack.enter_context(greeter("127.0.0.1:0", servicer=Greeter()))
        page = stack.enter_context(web())
        services = ["--service", f"50051={backend}", "--service", f"8080={page}", "--allow", "anyone"]
        finding = ["--rendezvous", rendezvous, "--no-port-mapping"]
        node = stack.enter_context(Process("keynet", "up", *common, str(folder / "n.pem"), *services, *finding))
        told = node.expect("ready")
        node.expect("rendezvous_connected")
        # `keynet status` finds one node: this one
        runtime = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "of-the-caller")
        runtime.mkdir(mode=0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(runtime))
            caller = stack.enter_context(Process("keynet", "up", *common, str(folder / "c.pem"), *finding))
        url = caller.expect("ready")["forward_url"]
        yield Surroundings(rendezvous, told["node_id"], told["proxy_address"], nats.url, url, backend, runtime)


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where the blocks make their files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("some-secret\n")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


# -- the reader of documents -------------------------------------------------------------------------------------------


def test_every_block_runs_or_says_why_not() -> None:
    run = documents.of("python", "sh", "toml")
    assert len(run) > 30
    unmarked = [block for block in documents.ALL if block.language not in ("", "python", "sh", "toml")]
    assert unmarked == [], "nobody runs blocks of these languages"
    comments = sum(
        len(re.findall(r"^<!-- not run:", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in documents.DOCUMENTS
    )
    marked = [block for block in documents.ALL if block.not_run is not None]
    assert len(marked) == comments, "a comment stands before no block"
    # whoever marks another one thinks about it here
    assert len(marked) <= 2, [f"{block}: {block.not_run}" for block in marked]


def test_blocks_without_a_language_hold_no_commands() -> None:
    for block in documents.ALL:
        if block.language == "":
            command = re.search(r"^\s*(\$ )?(keynet|pip|python3?|make|import|from) ", block.text, re.MULTILINE)
            assert command is None, str(block)


def test_prose_fits_an_editor() -> None:
    """Tables and code are as wide as they are."""
    wide = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benches").glob("*.md")]:
        is_code = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.lstrip().startswith("```"):
                is_code = not is_code
            elif not is_code and not line.lstrip().startswith(("|", "<!--")) and len(line) > 100:
                wide.append(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns")
    assert wide == []


def test_the_index_lists_every_document() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(([\w.-]+)\)", index))
    assert listed == {path.name for path in (ROOT / "docs").iterdir() if path.name != "README.md"}


# -- Python ------------------------------------------------------------------------------------------------------------


async def namespace(place: Surroundings, node: keynet.Proxy) -> dict[str, Any]:
    """What a block may use without saying where it comes from."""
    return {
        "asyncio": asyncio,
        "grpc": grpc,
        "keynet": keynet,
        "identity": keynet.Identity.generate(),
        "proxy": node,
        "friend": keynet.NodeId(place.node),
        "node_id": keynet.NodeId(place.node),
        "GreeterStub": rpc.GreeterStub,
        "request": pb.HelloRequest(name="Ada"),
        "secret": "some-secret",
        "admins": set(),
        "__name__": "document",
    }


def first_event_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over events has no end of its own."""
    events = keynet.Proxy.events

    async def first(self: keynet.Proxy) -> AsyncIterator[keynet.Event]:
        stream = events(self)
        # something happens
        pinging = asyncio.create_task(self.ping(self.node_id, timeout=1))
        yield await stream.__anext__()
        pinging.cancel()
        await asyncio.gather(pinging, return_exceptions=True)

    monkeypatch.setattr(keynet.Proxy, "events", first)


@pytest.mark.parametrize("block", [it for it in documents.of("python") if it.document != ROOT / "README.md"], ids=str)
async def test_python(
    block: Block, place: Surroundings, alice: keynet.Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_event_only(monkeypatch)
    code = compile(place.fill(block.text), str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with proxy(alice, rendezvous=[place.rendezvous], port_mapping=False) as node:
        # a line of its own runs it: what it awaits is awaited
        result = eval(code, await namespace(place, node))
        if result is not None:
            await asyncio.wait_for(result, HANG)
        await node.close(drain=False)


def test_the_programs_of_the_readme(place: Surroundings, folder: pathlib.Path) -> None:
    """Pasted into files, with the ids and the address that are one's own."""
    serving, calling = (block.text for block in documents.of("python") if block.document == ROOT / "README.md")
    ids = {name: keynet.Identity.load_or_create(folder / f"{name}.pem").node_id for name in ("server", "client")}
    for name, text, other in (("server", serving, "client"), ("client", calling, "server")):
        text = re.sub(r"v…@[\w.:]+", place.rendezvous, text)
        text = text.replace("v…", ids[other]).replace("127.0.0.1:50051", place.backend)
        (folder / f"{name}.py").write_text(text)
    with subprocess.Popen([sys.executable, "-u", "server.py"], stdout=subprocess.DEVNULL) as server:
        try:
            until_it_answers(ids["server"], keynet.Identity.load(folder / "client.pem"), place)
            done = run([sys.executable, "client.py"])
            assert done.returncode == 0, done.stderr
            assert "Hello, Ada!" in done.stdout
        finally:
            server.kill()


def until_it_answers(node: str, caller: keynet.Identity, place: Surroundings) -> None:
    """A program that has just started registers in its own time."""
    deadline = time.monotonic() + HANG
    with keynet.sync.Proxy(caller, listen="127.0.0.1:0", rendezvous=[place.rendezvous], port_mapping=False) as asking:
        while time.monotonic() < deadline:
            with contextlib.suppress(keynet.DialError):
                asking.ping(node)
                return
            time.sleep(0.2)
        pytest.fail(str(asking.explain(node)))


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


# -- the shell ---------------------------------------------------------------------------------------------------------

UNTIL_CONTROL_C = {"up", "forward", "rendezvous", "relay"}
# what a network allows is its own matter: a verdict is what the command is for
ANY_VERDICT = {"doctor": {0, 4, 8, 9}}
# commands of others, which a test does not start
OF_OTHERS = {"git", "cd", "pip", "make", "cargo", "apt-get", "sh", "python3", ".", ".venv/bin/python", "rustup"}


@pytest.mark.parametrize("block", documents.of("sh"), ids=str)
def test_shell(block: Block, place: Surroundings, folder: pathlib.Path) -> None:
    environment = {"KEYNET_RENDEZVOUS": place.rendezvous, "FORWARD_URL": place.forward_url}
    environment |= {"XDG_RUNTIME_DIR": str(place.runtime), "KEYNET_TURN_SECRET": "some-secret"}
    if any("--config" in command for command in documents.commands(block.text)):
        configure(place, folder)
    for command in documents.commands(place.fill(block.text)):
        words = shlex.split(command)
        while words and (assigned := re.fullmatch(r"(?:export )?([A-Z_]+)=(.*)", words[0], re.DOTALL)):
            environment[assigned[1]] = assigned[2]
            words = words[1:]
        if words[:1] == ["export"]:
            environment |= dict(expanded(word, environment).split("=", 1) for word in words[1:])
        elif words:
            execute(words, environment, str(block))


def expanded(word: str, environment: dict[str, str]) -> str:
    """A word in which the shell has put values in the place of `$NAME` and `${NAME#PREFIX}`."""
    values = {**os.environ, **environment}
    word = re.sub(r"\$\{(\w+)#([^}]*)\}", lambda found: values[found[1]].removeprefix(found[2]), word)
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], word)


def execute(words: list[str], environment: dict[str, str], where: str) -> None:
    """Runs one command of a document."""
    program, *arguments = words
    arguments = [expanded(word, environment) for word in arguments]
    if program == "keynet":
        keynet_command(arguments, environment, where)
    elif program == "python" and arguments[0].startswith("examples/"):
        # they have a test of their own
        assert (ROOT / arguments[0]).is_file(), where
    elif program == "curl":
        if shutil.which("curl"):
            done = run([program, "-sS", *arguments], **environment)
            assert (done.returncode, done.stdout) == (0, "a page\n"), f"{where}: {done.stderr}"
    elif program == "make":
        targets = [word for word in arguments if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), f"{where}: {targets}"
    else:
        assert program in OF_OTHERS, f"{where}: nobody knows how to run {program}"


def keynet_command(arguments: list[str], environment: dict[str, str], where: str) -> None:
    command = [sys.executable, "-m", "keynet", *arguments]
    if arguments[0] in ("up", "ping", "doctor", "forward") and "--no-port-mapping" not in arguments:
        command.append("--no-port-mapping")  # the router of this network is not the test's
    if arguments[0] == "doctor":
        command += ["--timeout", "2"]
    if arguments[0] not in UNTIL_CONTROL_C and "--watch" not in arguments:
        done = run(command, **environment)
        said = f"{where}: {shlex.join(arguments)}: {done.stderr}"
        assert done.returncode in ANY_VERDICT.get(arguments[0], {0}), said
        assert "Traceback" not in done.stderr, said
        return
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as running:
        guard = threading.Timer(HANG, running.kill)
        guard.start()
        try:
            assert running.stdout is not None
            ready = (lambda _: True) if "--watch" in arguments else (lambda line: line.rstrip() == "ready")
            began = any(ready(line) for line in running.stdout)
            running.send_signal(signal.SIGINT)
            _, complaints = running.communicate()
        finally:
            guard.cancel()
    assert began, f"{where}: {shlex.join(arguments)}: {complaints}"
    assert running.returncode in ((0, 130) if "--watch" in arguments else (0,)), f"{where}: {complaints}"


def configure(place: Surroundings, folder: pathlib.Path) -> None:
    """Writes the configuration file that the documents show."""
    (block,) = documents.of("toml")
    (folder / "node.toml").touch(mode=0o600)
    (folder / "node.toml").write_text(place.fill(block.text).replace("v…", place.node))


# -- the complete programs ---------------------------------------------------------------------------------------------


def test_the_examples(place: Surroundings, folder: pathlib.Path) -> None:
    """As docs/tutorial.md has them run, with its commands."""
    client = keynet.Identity.load_or_create(folder / "client.pem").node_id
    serve = command_of("examples/server.py", place, client)
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        guard = threading.Timer(HANG, server.kill)
        guard.start()
        try:
            assert server.stdout is not None
            assert any(line.startswith("ready") for line in server.stdout)
            node = keynet.Identity.load(folder / "server.pem").node_id
            done = run(command_of("examples/client.py", place, node))
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[:5] == [
                "Hello, Ada!",
                f"the server knows this node as {client}",
                *("3", "2", "1"),
            ]
            server.send_signal(signal.SIGINT)
            out, complaints = server.communicate()
        finally:
            guard.cancel()
            server.kill()
    assert (server.returncode, complaints) == (0, "")
    assert f"Ada calls from {client}" in out


def test_the_client_says_why_it_failed(place: Surroundings) -> None:
    nobody = keynet.Identity.generate().node_id
    done = run(command_of("examples/client.py", place, nobody))
    assert done.returncode == 1
    assert "peer_offline" in done.stderr or "offline" in done.stderr
    assert "Traceback" not in done.stderr


def command_of(program: str, place: Surroundings, node: str) -> list[str]:
    """The command of the tutorial that runs this program, for this node."""
    lines = [command for block in documents.of("sh") for command in documents.commands(block.text)]
    (line,) = {line for line in lines if shlex.split(line)[:2] == ["python", program]}
    words = [re.sub(r"v…@[\w.:]+", place.rendezvous, word).replace("v…", node) for word in shlex.split(line)[2:]]
    return [sys.executable, str(ROOT / program), *words]
