"""What the command says: in its own words, within 80 columns, as JSON where that is asked for, and for whom it is."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator

import pytest
from test_secrets import command

import keynet
from keynet.cli import ExitCode, _completion, main, parser
from keynet.cli._output import Output
from keynet.cli._run import Refusals, _line, say_waiting
from keynet.cli._watch import drawn
from keynet.cli._words import redacted, wrapped
from keynet.demo.run import Process
from keynet.errors import _from_core
from support import SERVICE, sync_proxy

NODE = keynet.NodeId("vb1" + "j6cp" * 12 + "j0")
CHECKOUT = pathlib.Path(__file__).parents[2]


def subparsers() -> dict[str, argparse.ArgumentParser]:
    whole = parser()
    return dict(next(one.choices for one in whole._actions if isinstance(one, argparse._SubParsersAction)))


# -- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["ping"], ["ping", "nobody"], ["up", "--nonsense"], [], ["up", "--json=x"], ["ping", NODE, "-c", "0"]],
    ids=" ".join,
)
def test_json_is_given_for_wrong_usage_too(arguments: list[str]) -> None:
    done = command(*arguments, "--json")
    assert done.returncode == ExitCode.USAGE
    (said,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert said["error"]["reason"] == "invalid_argument"
    assert said["error"]["detail"]
    assert done.stderr == ""


def test_the_log_is_json_with_json(tmp_path: pathlib.Path) -> None:
    done = command("ping", NODE, "127.0.0.1:9", "--timeout", "0.3", "--json", "-vv")
    assert done.returncode == ExitCode.UNREACHED
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines
    assert all({"time", "level", "logger", "message"} == set(line["log"]) for line in lines)


def test_help_of_a_command_and_the_version() -> None:
    assert command("-V").stdout == command("--version").stdout
    assert command("help").stdout == command("--help").stdout
    assert command("help", "ping").stdout == command("ping", "--help").stdout
    done = command("help", "fly")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "ping" in done.stderr


@pytest.mark.parametrize("columns", [80, 60])
def test_help_fits_the_terminal(columns: int) -> None:
    for name in subparsers():
        text = command(name, "--help", COLUMNS=str(columns)).stdout
        # examples in configuration files and names of variables stay as they are
        long = [line for line in text.splitlines() if len(line) > 80]
        assert not long, long


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--service", "1=127.0.0.1:1"], "--service needs --allow"),
        (["up", "--listen", "nowhere"], "--listen: "),
        (["up", "--patience", "nan"], "--patience: "),
        (["forward", NODE, "1", "-a", "h:1", "--local", "nowhere"], "--local: "),
        (["relay", "--user", "a=b", "--listen", "127.0.0.1:0", "--realm", "é"], "--realm: "),
        (["up", "--rendezvous", "127.0.0.1:1"], "--rendezvous: "),
        (["up", "--stun", "x"], "--stun: "),
        (["up", "--relay", "turn:host"], "--relay: "),
        (["relay"], "--user NAME=PASSWORD"),
        (["relay", "--user", "a=b", "--external", "x"], "--external: "),
        (["up", "--service", "1=a:1", "--service", "1=b:1", "--allow", "anyone"], "there twice"),
        (["up", "--service", "1=a:1", "--allow", "anyone", "--allow", NODE], "mean nothing"),
        (["up", "--expect", NODE], "--peer"),
        (["up", "--relay", "turn:u:p@h", "--direct-only"], "contradict"),
        (["up", "--relay", f"turn:u:p@h?key={NODE}"], "turns:"),
        (["rendezvous", "--turn", f"turn:h?key={NODE}"], "means nothing without TLS"),
        (["rendezvous", "--max-nodes", "0"], "above 0"),
        (["rendezvous", "--listen", "127.0.0.1:0", "--relay", "nonsense:4"], "--relay: "),
        (["rendezvous", "--relay", "127.0.0.1:3478", "--relay-tls", "nonsense"], "--relay-tls: "),
        (["rendezvous", "--relay", "127.0.0.1:3478", "--relay-external", "bad"], "--relay-external: "),
        (
            ["rendezvous", "--listen", "127.0.0.1:0", "--relay", "127.0.0.1:3478", "--relay-allow-peer", "bad"],
            "--relay-allow-peer: ",
        ),
        (["rendezvous", "--stun", "bad"], "--stun: "),
        (["rendezvous", "--public-stun", "bad"], "--public-stun: "),
        (["rendezvous", "--nats", "bad"], "--nats "),
        (["up", "--metrics", "bad"], "--metrics: "),
        (["up", "--metrics", f"{'x' * 64}.example:80"], "--metrics: "),
        (["up", "--servic", "1=a:1"], "--servic"),
        (["up", "--service", "080=a:1", "--service", "80=b:1", "--allow", "anyone"], "there twice"),
        (["relay", "--user", "a=b", "--rate", "-1"], "above 0"),
        (["relay", "--user", "a=b", "--certificate", "/x", "/y"], "--tls"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_complaint_speaks_of_flags(arguments: list[str], said: str, tmp_path: pathlib.Path) -> None:
    done = command(*arguments, XDG_CONFIG_HOME=str(tmp_path), KEYNET_TURN_SECRET="x")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert said in done.stderr
    assert not re.search(r"\b(services|allow|relays|users|secret|introduction_peers)=", done.stderr)


MANY_DIGITS = pytest.param("9" * 5_000, id="thousands of digits")


@pytest.mark.parametrize("number", ["", "1.5", "-1", "\u0663", MANY_DIGITS])
@pytest.mark.parametrize(
    "flag", ["--turn=turn:h:3478,weight=", "--relay-weight=", "--max-nodes=", "--stun=127.0.0.1:", "--relay=127.0.0.1:"]
)
def test_what_is_no_whole_number_is_refused(flag: str, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYNET_TURN_SECRET", "x")
    assert main(["rendezvous", "--listen", "127.0.0.1:0", flag + number]) == ExitCode.USAGE


@pytest.mark.parametrize(
    "value", ["", " ", "[::1", "[::1:80", "*:80", "::1:80", "127.0.0.1:\uff18", "host:80:80", "a b:1"]
)
@pytest.mark.parametrize("flag", ["--listen", "--forward", "--metrics", "--rendezvous", "--stun", "--peer", "--relay"])
def test_what_is_no_address_is_refused(
    flag: str, value: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None is passed over, and none is taken for something else."""
    given = f"{NODE}{'=' if flag == '--peer' else '@'}{value}" if flag in ("--rendezvous", "--peer") else value
    code = main(["up", "--identity", str(tmp_path / "n.pem"), "--no-port-mapping", flag, given])
    assert code == ExitCode.USAGE
    assert "keynet: invalid argument: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["nonsense", "http://", "http://a b:1", "http://proxy:port"])
def test_an_http_proxy_that_is_none_is_refused(text: str) -> None:
    done = command("ping", NODE, "127.0.0.1:9", "--timeout", "0.3", https_proxy=text)
    assert done.returncode == ExitCode.USAGE
    assert "https_proxy in the environment" in done.stderr
    # what other programs may be able to use is no fault
    assert command("ping", NODE, "127.0.0.1:9", "--timeout", "0.3", https_proxy="socks5://p:1").returncode == 4


def test_the_own_id_in_the_access_list_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    own = keynet.Identity.load_or_create(path).node_id
    done = command("up", "--identity", str(path), "--service", "1=127.0.0.1:1", "--allow", own)
    assert done.returncode == ExitCode.USAGE
    assert "this node itself" in done.stderr


def test_every_exception_has_the_reason_of_its_class() -> None:
    for name in keynet.errors.__all__:
        error = getattr(keynet.errors, name)("in words")
        own = keynet.errors._CLASSES[error.reason]
        assert isinstance(error, own) or issubclass(own, type(error)), name
        assert (str(error), error.detail) == ("in words", "in words")
    assert keynet.InvalidArgument("x").reason == "invalid_argument"
    assert "report" not in keynet.InvalidArgument("x").advice
    assert keynet.TlsError("x").reason == "tls_failed"


# -- for whom --------------------------------------------------------------------------------------------------------


def test_ping_says_under_which_name_it_goes(bob: keynet.Identity, tmp_path: pathlib.Path) -> None:
    mine = keynet.Identity.load_or_create(tmp_path / "mine.pem").node_id
    with sync_proxy(bob, services={SERVICE: "127.0.0.1:1"}, allow=[mine]) as node:
        human = command("ping", bob.node_id, node.proxy_address)
        assert re.search(r"this node +v\w{52} \(made for this run\)", human.stdout)
        assert human.stdout.startswith(f"{bob.node_id[:8]} at ")
        done = command("ping", bob.node_id, node.proxy_address, "--identity", str(tmp_path / "mine.pem"), "--json")
        assert json.loads(done.stdout)["own_node_id"] == mine
        node.close(drain=False)
    failed = command("ping", NODE, "127.0.0.1:9", "--timeout", "0.3", "--json")
    assert json.loads(failed.stdout)["own_node_id"].startswith("v")


def test_the_callee_says_whom_it_refused_and_how_to_let_them_in(tmp_path: pathlib.Path) -> None:
    caller = keynet.Identity.generate()
    up = ["--listen", "127.0.0.1:0", "--service", "7=127.0.0.1:9", "--allow", NODE]
    with Process("keynet", "up", "--identity", str(tmp_path / "n.pem"), "--json", *up) as server:
        ready = server.expect("ready")
        with keynet.sync.Proxy(caller, listen="127.0.0.1:0") as proxy:
            proxy.add_peer(ready["node_id"], [ready["proxy_address"]])
            with proxy.forward(ready["node_id"], 7) as forward, contextlib.closing(connect(forward.address)) as client:
                nothing_comes(client)
            refused = server.expect("connection_refused")
            proxy.close(drain=False)
    assert (refused["role"], refused["node_id"], refused["service_port"]) == ("reverse", caller.node_id, 7)
    error = _from_core("access_denied", "open", caller.node_id, None, "not on the access list")
    line = _line(keynet.ConnectionRefused(caller.node_id, "192.0.2.1:5", 7, error, keynet.Role.REVERSE))
    assert f"--allow {caller.node_id}" in line
    # what the peer should do is no advice for this side
    assert error.advice not in line


def nothing_comes(client: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_a_static_forward_to_an_absent_service_says_why(
    alice: keynet.Identity, bob: keynet.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    with sync_proxy(bob, services={7: "127.0.0.1:9"}, allow=keynet.ANYONE) as there, sync_proxy(alice) as here:
        here.add_peer(bob.node_id, [there.proxy_address])
        events = here.events()
        with here.forward(bob.node_id, 8) as forward, contextlib.closing(connect(forward.address)) as client:
            nothing_comes(client)
        while not isinstance(event := events.next(30), keynet.ConnectionRefused):
            assert event is not None
        assert (event.node_id, event.service_port, event.role) == (bob.node_id, 8, keynet.Role.FORWARD)
        assert event.error.reason == "service_not_found"
        until = time.monotonic() + 30
        while "a static forward does not reach its service" not in caplog.text and time.monotonic() < until:
            time.sleep(0.05)
        (record,) = [one for one in caplog.records if "static forward" in one.getMessage()]
        assert record.levelname == "WARNING"
        assert bob.node_id in record.getMessage()
        assert "8" in record.getMessage()
        here.close(drain=False)
        there.close(drain=False)


def test_a_peer_that_is_refused_again_and_again_is_told_of_once() -> None:
    error = _from_core("access_denied", "open", NODE, None, "")
    event = keynet.ConnectionRefused(NODE, "192.0.2.1:5", 7, error, keynet.Role.REVERSE)
    refusals = Refusals()
    assert [refusals.is_new(event) for _ in range(3)] == [True, False, False]
    others = [keynet.ConnectionRefused(NODE, None, port, error, keynet.Role.REVERSE) for port in range(1000, 2000)]
    assert all(map(refusals.is_new, others))
    assert len(refusals._told) == 256
    mine = keynet.ConnectionRefused(NODE, "127.0.0.1:5", 7, error, keynet.Role.FORWARD)
    assert refusals.is_new(mine)
    assert refusals.is_new(mine)


def test_a_path_that_stays_where_it_is_is_not_said_to_change_from_there_to_there() -> None:
    line = _line(keynet.PathChanged(NODE, "192.0.2.1:5", "192.0.2.1:5", False))
    assert "from" not in line
    assert "direct" in line


def test_an_end_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    say_waiting(1, 10.0, Output(json=False))
    assert capsys.readouterr().err == "1 connection open, closing in 10 s, Ctrl-C again to cut\n"
    say_waiting(2, 2.5, Output(json=True))
    assert json.loads(capsys.readouterr().out) == {"event": "closing", "connections": 2, "seconds": 2.5}
    with_limits = keynet.sync.Proxy(keynet.Identity.generate(), limits={"drain_timeout": 3})
    assert (with_limits.drain_timeout, keynet.sync.Proxy(keynet.Identity.generate()).drain_timeout) == (3.0, 10.0)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["hup", "term"])
def test_a_node_whose_terminal_ends_says_goodbye(number: signal.Signals, tmp_path: pathlib.Path) -> None:
    with Process("keynet", "up", "--identity", str(tmp_path / "n.pem"), "--listen", "127.0.0.1:0", "--json") as node:
        node.expect("ready")
        node._process.send_signal(number)
        assert [line["event"] for line in node.lines()][-1] == "closed"
        node.finish()


def test_ctrl_c_while_it_is_loaded_shows_no_traceback() -> None:
    for after in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4):
        child = subprocess.Popen(
            [sys.executable, "-c", LATE.format(after=after), "keynet", "ping", NODE, "127.0.0.1:9", "--timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        said, complaints = child.communicate(timeout=60)
        assert child.returncode in (-signal.SIGINT, ExitCode.INTERRUPTED), (after, child.returncode)
        assert "Traceback" not in complaints, (after, complaints)
        assert said == ""


# becomes `python -m keynet` with a signal on its way, which is ignored until then
LATE = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
parent = os.getpid()
if os.fork() == 0:
    # from where the package is imported on: what Python does before is none of ours
    while b"_keynet" not in open(f"/proc/{{parent}}/maps", "rb").read() and os.getppid() == parent:
        time.sleep(0.005)
    time.sleep({after})
    os.kill(parent, signal.SIGINT)
    os._exit(0)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


# -- on a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """The command on a terminal of a given width."""

    def __init__(
        self, *arguments: str, columns: int = 80, rows: int = 24, program: list[str] | None = None, **environment: str
    ) -> None:
        program = program or [sys.executable, "-m", "keynet", *arguments]
        self.child, self.master = pty.fork()
        if self.child == 0:
            variables = {**os.environ, "TERM": "xterm", **environment}
            for name in ("COLUMNS", "LINES", "NO_COLOR", *(one for one, value in environment.items() if not value)):
                variables.pop(name, None)
            variables.update({name: value for name, value in environment.items() if value})
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            try:
                os.execvpe(program[0], program, variables)
            finally:
                os._exit(127)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.shown = ""

    def until(self, text: str) -> str:
        """Reads until the text is there."""
        while text not in self.shown:
            assert self._read(60), self.shown
        return self.shown

    def end(self) -> tuple[int, str]:
        """Reads what is left, and waits."""
        while self._read(60):
            pass
        _, status = os.waitpid(self.child, 0)
        os.close(self.master)
        return os.waitstatus_to_exitcode(status), self.shown

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return False
        try:
            raw = os.read(self.master, 65536)
        except OSError:
            return False  # EIO: the other end is closed
        self.shown += raw.decode(errors="replace")
        return bool(raw)


def plain_lines(shown: str) -> list[str]:
    # what is written over is a line, too
    return re.split(r"[\r\n]+", re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", shown))


def test_lines_fit_a_terminal_and_have_colour_where_that_is_wanted(tmp_path: pathlib.Path) -> None:
    arguments = ["up", "--identity", str(tmp_path / "n.pem"), "--listen", "127.0.0.1:0"]
    arguments += ["--rendezvous", f"{NODE}@127.0.0.1:9", "--no-port-mapping"]
    for environment, colourful in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        terminal = Terminal(*arguments, **environment)
        terminal.until("ready")
        terminal.press("\x03")
        code, shown = terminal.end()
        assert code == 0, shown
        assert ("\033[" in shown) is colourful
        assert max(map(len, plain_lines(shown))) < 81, shown
    code, shown = Terminal("ping", NODE, "127.0.0.1:9", "--timeout", "0.3").end()
    assert code == ExitCode.UNREACHED
    assert "\033[31m" in shown
    assert max(map(len, plain_lines(shown))) < 81, shown


@contextlib.contextmanager
def a_node(home: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A node that runs; its status socket, and the environment it has."""
    # the name of a UNIX socket is short
    runtime = tempfile.mkdtemp(prefix="kn-")
    environment = {"XDG_RUNTIME_DIR": runtime, "HOME": str(home)}
    up = [sys.executable, "-m", "keynet", "up", "--identity", str(home / "n.pem"), "--listen", "127.0.0.1:0"]
    node = subprocess.Popen([*up, "--json"], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert node.stdout is not None
    try:
        yield json.loads(node.stdout.readline())["status_socket"], environment
    finally:
        node.send_signal(signal.SIGINT)
        node.communicate(timeout=60)
        shutil.rmtree(runtime)


def test_watching_redraws_in_a_narrow_window_and_q_ends_it(tmp_path: pathlib.Path) -> None:
    with a_node(tmp_path) as (socket, home):
        terminal = Terminal("status", "--socket", socket, "--watch", "--interval", "0.2", columns=40, rows=10, **home)
        while terminal.shown.count("\033[H") < 3:
            assert terminal._read(60)
        terminal.press("q")
        code, shown = terminal.end()
        assert code == 0, shown
        frames = shown.split("\033[H")[1:]
        assert all(len(line) < 40 for frame in frames for line in plain_lines(frame)), frames[:2]
        assert all(frame.count("\n") < 10 for frame in frames[:-1])
        # the screen and the cursor are as they were
        assert shown.rstrip().endswith("\033[?1049l")
        # objects for a program: the terminal is left alone
        objects = Terminal("status", "--socket", socket, "--watch", "--json", "--interval", "0.2", **home)
        while objects.shown.count("\n") < 2:
            assert objects._read(60)
        assert "\033" not in objects.shown
        assert termios.tcgetattr(objects.master)[3] & (termios.ICANON | termios.ECHO)
        os.kill(objects.child, signal.SIGINT)
        assert objects.end()[0] == 0


def test_watching_in_the_background_draws_nothing_and_a_stop_restores_the_terminal(
    tmp_path: pathlib.Path,
) -> None:
    with a_node(tmp_path) as (socket, home):
        watch = f"{sys.executable} -m keynet status --socket {socket} --watch --interval 0.1"
        script = f"set -m; {watch} & sleep 2; echo TO FRONT; fg; echo STOPPED; fg; echo DONE $?"
        terminal = Terminal(program=["bash", "-c", script], **home)
        assert "\033[" not in terminal.until("TO FRONT").partition("TO FRONT")[0]
        terminal.until("\033[H")
        terminal.press("\x1a")
        before, _, _ = terminal.until("STOPPED").partition("STOPPED")
        assert before.count("\033[?1049h") == before.count("\033[?1049l") == 1
        assert termios.tcgetattr(terminal.master)[3] & (termios.ICANON | termios.ECHO)
        while "\033[H" not in terminal.shown.partition("STOPPED")[2]:
            assert terminal._read(60), terminal.shown
        terminal.press("q")
        assert "DONE 0" in terminal.end()[1]


def test_a_frame_is_cut_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "5")
    frame = drawn("\n".join("x" * 50 for _ in range(50)))
    assert frame.count("\n") == 4
    assert max(map(len, plain_lines(frame))) == 19


def test_long_lines_are_broken_between_words_only_on_a_terminal() -> None:
    text = "refused             " + NODE + " at 192.0.2.1:5, service 7: not on the access list"
    assert wrapped(text, None) == text
    lines = wrapped(text, 80).split("\n")
    assert len(lines) == 2
    assert max(map(len, lines)) < 80
    assert NODE in lines[0] + lines[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("turn:alice:hunter2@relay", "turn:alice:...@relay"),
        ("not: 'nats://a:b@c'", "not: 'nats:...@c'"),
        ("v0@host:1", "v0@host:1"),
    ],
)
def test_passwords_are_taken_out_of_what_is_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


# -- completion and manual -------------------------------------------------------------------------------------------


def test_completion_knows_every_command_and_flag() -> None:
    commands = subparsers()
    for make in (_completion.bash, _completion.zsh, _completion.fish):
        text = make(commands)
        for name in commands:
            assert re.search(rf"\b{name}\b", text)
        assert "rendezvous" in text
        assert "watch" in text
    script = 'COMP_WORDS=(keynet st); COMP_CWORD=1; _keynet; echo "${COMPREPLY[@]}"'
    text = _completion.bash(commands)
    done = subprocess.run(["bash", "-c", f"{text}\n{script}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "status"
    script = 'COMP_WORDS=(keynet status --wa); COMP_CWORD=2; _keynet; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{text}\n{script}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "--watch"
    assert command("completion", "bash").stdout == text
    assert command("completion", "tcsh").returncode == ExitCode.USAGE


def test_the_manual_page_is_current() -> None:
    page = command("help", "--man", HOME="/home/you", XDG_CONFIG_HOME="").stdout
    file = CHECKOUT / "docs" / "keynet.1"
    if os.environ.get("KEYNET_REGENERATE"):
        file.write_text(page)
    assert page.startswith('.\\" made by')
    assert file.read_text() == page, "KEYNET_REGENERATE=1 pytest -k manual_page writes it anew"
    for name in subparsers():
        assert f".SS keynet {name}" in page
    # no text of a paragraph is taken for a request
    assert not [line for line in page.splitlines() if re.match(r"[.'](?!(\\\"|TH|SH|SS|TP|PP|nf|fi|B|I) ?)", line)]
