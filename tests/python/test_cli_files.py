"""Files as they come: identities that others deliver, homes that are none, names and texts that are not UTF-8."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
from typing import Any

import pytest
from test_secrets import command

import keynet
from keynet.cli import ExitCode, main
from keynet.cli._config import _KINDS

ROOT = os.geteuid() == 0
OTHER = 54321


def test_without_a_home_there_is_help_and_a_clear_error() -> None:
    code = (
        "import os, pwd, sys; os.environ.pop('HOME', None); os.environ.pop('XDG_CONFIG_HOME', None)\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from keynet.cli import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-c", code, *arguments]
        return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=60)

    for arguments in (["relay", "--help"], ["id", "--help"], ["up", "--help"], ["--version"]):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
    for arguments in (["id"], ["id", "--show"], ["up"]):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (ExitCode.IDENTITY, "")
        assert "no home directory" in done.stderr
        assert "--identity" in done.stderr
        assert "Traceback" not in done.stderr
    done = run("status")
    assert (done.returncode, "Traceback" in done.stderr) == (ExitCode.FAILED, False)


@pytest.mark.parametrize("name", ["50%d", "%(prog)s", "%"])
def test_a_per_cent_sign_in_home_is_a_character_like_others(name: str, tmp_path: pathlib.Path) -> None:
    home = tmp_path / name
    home.mkdir()
    for variable in ("HOME", "XDG_CONFIG_HOME"):
        for arguments in (["id", "--help"], ["up", "--help"], ["ping", "--help"], ["forward", "--help"]):
            done = command(*arguments, **{"XDG_CONFIG_HOME": "", variable: str(home)})
            assert done.returncode == 0, done.stderr
    assert name in command("id", "--help", HOME=str(home), XDG_CONFIG_HOME="").stdout


def test_names_that_are_not_utf8_are_names(tmp_path: pathlib.Path) -> None:
    path = os.fsencode(tmp_path) + b"/k\xe4the.pem"
    done = subprocess.run(
        [sys.executable, "-m", "keynet", "id", path, "--json"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout)["file"]) == path
    assert keynet.Identity.load(path).node_id == json.loads(done.stdout)["node_id"]  # type: ignore[arg-type]
    human = subprocess.run([sys.executable, "-m", "keynet", "id", path], capture_output=True, check=False, timeout=60)
    assert (human.returncode, human.stderr) == (0, b"")
    unix = b"unix:/run/k\xe4the.sock"
    for arguments in ([b"--listen", b"\xff"], [b"--service", b"1=" + unix, b"--allow", b"anyone"]):
        whole = [sys.executable.encode(), b"-m", b"keynet", b"up", b"--identity", path, *arguments]
        done = subprocess.run(whole, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, b"")
        assert b"UTF-8" in done.stderr
        assert b"Traceback" not in done.stderr


def test_an_identity_by_symbolic_links_as_kubernetes_lays_them(tmp_path: pathlib.Path) -> None:
    identity = keynet.Identity.generate()
    (tmp_path / "..1").mkdir()
    identity.save(tmp_path / "..1" / "node.pem")
    (tmp_path / "..data").symlink_to("..1")
    link = tmp_path / "node.pem"
    link.symlink_to("..data/node.pem")
    (said,) = [json.loads(line) for line in command("id", "--show", str(link), "--json").stdout.splitlines()]
    assert said["node_id"] == identity.node_id
    assert command("id", "--renew", str(link)).returncode == 0
    assert link.is_symlink()


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_the_owner_of_an_identity_file_is_judged(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    keynet.Identity.generate().save(path)
    os.chown(path, OTHER, OTHER)
    done = command("id", "--show", str(path))
    assert done.returncode == ExitCode.IDENTITY
    assert f"belongs to user {OTHER}" in done.stderr


def test_a_folder_that_others_can_write_is_no_place_for_an_identity(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    done = command("id", str(folder / "node.pem"))
    assert done.returncode == ExitCode.IDENTITY
    assert f"chmod go-w {folder}" in done.stderr
    assert list(folder.iterdir()) == []
    folder.chmod(0o1777)
    assert command("id", str(folder / "node.pem")).returncode == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="wants a C compiler")
def test_a_file_system_without_hard_links(tmp_path: pathlib.Path) -> None:
    source, library = tmp_path / "x.c", tmp_path / "x.so"
    source.write_text(
        "#include <errno.h>\n"
        "int link(const char *a, const char *b) { errno = EPERM; return -1; }\n"
        "int linkat(int a, const char *b, int c, const char *d, int f) { errno = EPERM; return -1; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    done = command("id", str(tmp_path / "node.pem"), LD_PRELOAD=str(library))
    assert done.returncode == 0, done.stderr
    assert keynet.Identity.load(tmp_path / "node.pem").node_id in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.pem", "x.c", "x.so"]


@pytest.mark.skipif(not ROOT, reason="only root can be another user")
def test_a_foreign_runtime_folder_is_passed_over(tmp_path: pathlib.Path) -> None:
    foreign = tmp_path / "runtime"
    foreign.mkdir(mode=0o700)
    # becomes another user when all is loaded: the interpreter may be out of that one's reach
    program = (
        f"import os, keynet.cli; os.setgid({OTHER}); os.setuid({OTHER}); raise SystemExit(keynet.cli.main(['status']))"
    )
    environment = {**os.environ, "HOME": "/nonexistent", "XDG_RUNTIME_DIR": str(foreign)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.FAILED, done.stderr
    assert "Traceback" not in done.stderr


def up(tmp_path: pathlib.Path, raw: bytes) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    config = tmp_path / "node.toml"
    config.write_bytes(raw)
    done = command("up", "--config", str(config), "--json", XDG_CONFIG_HOME=str(tmp_path))
    return done, json.loads(done.stdout.splitlines()[0])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("listen = 'é'".encode("latin-1"), "line 1 is not UTF-8"),
        ("# fine\nlisten = 'é'".encode("latin-1"), "line 2 is not UTF-8"),
        ("listen = 'x'".encode("utf-16"), "UTF-16"),
        ("listen = 'x'".encode("utf-16-le"), "UTF-16"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a" + b".a" * 100_000 + b" = 1", "nested too deeply"),
        (b"#" * (1 << 20) + b"#", "larger than"),
        (b"[services]\n1 = 2", "backend"),
        (b"patience = true", "patience is of the wrong type"),
    ],
    ids=["latin-1", "latin-1 later", "utf-16", "utf-16 without a mark", "deep", "dotted", "large", "type", "bool"],
)
def test_a_configuration_that_cannot_be_read_is_told_why(raw: bytes, said: str, tmp_path: pathlib.Path) -> None:
    done, first = up(tmp_path, raw)
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr
    detail = first["error"]["detail"]
    assert said in detail


def test_a_byte_order_mark_is_skipped(tmp_path: pathlib.Path) -> None:
    # it is read: what is complained of stands behind it
    _, first = up(tmp_path, b"\xef\xbb\xbflisten = 'localhost:1'")
    assert "not a name" in first["error"]["detail"]


@pytest.mark.parametrize(
    "command_line", [["relay", "--secret-file"], ["relay", "--tls", "127.0.0.1:0", "--user", "a=b"]]
)
def test_a_secret_that_every_user_can_read_is_refused(command_line: list[str], tmp_path: pathlib.Path) -> None:
    file = tmp_path / "secret"
    file.write_text("a secret that is long enough")
    file.chmod(0o644)
    files = [str(file)] if command_line[-1] == "--secret-file" else ["--certificate", str(file), str(file)]
    done = command(*command_line, *files)
    assert done.returncode == ExitCode.USAGE
    assert "chmod o=" in done.stderr


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_configuration_with_passwords_is_not_for_every_user(extra: list[str], tmp_path: pathlib.Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("relays = ['turn:alice:hunter2hunter2@relay.example.org']\nlisten = 'x'")
    config.chmod(0o644)
    done = command("up", "--config", str(config), *extra, HOME=str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert f"chmod o= {config}" in done.stderr + done.stdout
    assert "hunter2" not in done.stderr + done.stdout
    # the group may be that of a service; and what holds no password may be read by all
    config.chmod(0o640)
    assert "--listen" in command("up", "--config", str(config), HOME=str(tmp_path)).stderr
    config.write_text("relays = ['turn:relay.example.org']\nlisten = 'x'")
    config.chmod(0o644)
    assert "chmod" not in command("up", "--config", str(config), HOME=str(tmp_path)).stderr


WRONG = (1, 1.5, True, "text", "", [], [1], [[]], {}, {"a": 1}, {"1": [1]}, "2026-11-30T00:00:00Z", "nan", "-inf")


@pytest.mark.parametrize("key", sorted(_KINDS))
def test_a_value_of_another_type_is_refused_in_words(key: str, tmp_path: pathlib.Path) -> None:
    """No key takes a wrong value for granted, and none ends in a traceback; the last line is wrong in each."""

    def toml(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(name)} = {toml(one)}" for name, one in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        is_bare = isinstance(value, str) and (value.startswith("2026") or value in ("nan", "-inf"))
        return str(value) if is_bare else json.dumps(value)

    for value in WRONG:
        config = tmp_path / "node.toml"
        config.write_text(f"{key} = {toml(value)}\n" + ("" if key == "listen" else "listen = 'nonsense'\n"))
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(tmp_path))
            patch.chdir(tmp_path)
            code = main(["up", "--config", str(config), "--json"])
        said = json.loads(out.getvalue().splitlines()[0])
        assert code in (ExitCode.USAGE, ExitCode.IDENTITY), (value, said)
        assert said["error"]["reason"] in ("invalid_argument", "identity_invalid"), (value, said)


def test_a_key_that_is_none_is_not_quoted(tmp_path: pathlib.Path) -> None:
    for raw in ('"turn:a:hunter2hunter2@h" = 1', "hunter2hunter2 = 1", "[peers]\n'x:hunter2hunter2@h' = 1"):
        _, first = up(tmp_path, raw.encode())
        assert "hunter2" not in json.dumps(first), first
    _, first = up(tmp_path, b"lissten = 1")
    assert "lissten" in first["error"]["detail"]


TAKES_A_FILE = ("id", "id --show", "up --identity", "up --listen=x --config", "relay --listen=x --secret-file")


@pytest.mark.parametrize("kind", ["folder", "fifo", "empty", "null", "nul bytes", "utf-16", "huge", "socket", "loop"])
@pytest.mark.parametrize("arguments", TAKES_A_FILE)
def test_what_is_no_such_file_is_told_at_once(
    kind: str, arguments: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path, 0o600)
        case "null":
            path = pathlib.Path("/dev/null")
        case "socket":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(os.path.relpath(path))
            listener.close()
        case "loop":
            path.symlink_to(path)
        case _:
            texts = {"empty": b"", "nul bytes": b"\0" * 600, "huge": b"x" * (3 << 20), "utf-16": "é".encode("utf-16")}
            path.write_bytes(texts[kind])
            path.chmod(0o600)
    assert main([*arguments.split(), str(path), "--json"]) in (ExitCode.USAGE, ExitCode.IDENTITY)
    (said,) = map(json.loads, capsys.readouterr().out.splitlines())
    if not (arguments.endswith("--config") and kind in ("empty", "null", "fifo")):  # an empty one is one
        assert str(path) in said["error"]["detail"]


def test_a_pipe_of_a_password_manager_is_read(tmp_path: pathlib.Path) -> None:
    shell = f"{sys.executable} -m keynet relay --listen x --secret-file <(sleep 0.3; echo a secret that is long enough)"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    # it is read: what is complained of comes later
    assert "--listen: 'x'" in done.stderr, done


def test_a_full_disk_is_told(tmp_path: pathlib.Path) -> None:
    for arguments in (["id"], ["id", "--json"], ["--help"], ["help", "up"], ["--version"]):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(
                [sys.executable, "-m", "keynet", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "HOME": str(tmp_path)},
            )
        assert done.returncode == ExitCode.FAILED, (arguments, done)
        assert done.stderr == "keynet: standard output cannot be written: No space left on device\n", arguments


def test_without_an_output_the_exit_code_says_it(tmp_path: pathlib.Path) -> None:
    for arguments, code in (("id --show nothing", ExitCode.IDENTITY), ("ping v0 x", ExitCode.USAGE), ("id -q", 0)):
        shell = f"{sys.executable} -m keynet {arguments} >&- 2>&-"
        done = subprocess.run(["sh", "-c", shell], timeout=60, check=False, env={**os.environ, "HOME": str(tmp_path)})
        assert done.returncode == code, arguments


def test_folders_are_this_users_alone_whatever_the_umask(tmp_path: pathlib.Path) -> None:
    for umask in ("000", "077"):
        home = tmp_path / umask
        home.mkdir()
        shell = f"umask {umask}; exec {sys.executable} -m keynet id -q"
        environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": ""}
        done = subprocess.run(["sh", "-c", shell], timeout=60, check=False, env=environment, capture_output=True)
        assert done.returncode == 0, done
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")}
        assert modes == {".config": 0o700, "keynet": 0o700, "identity.pem": 0o600}
