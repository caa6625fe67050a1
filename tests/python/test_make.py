"""What `make test` needs of a machine: it takes what is there, and names what it did not run."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import pytest

import surroundings

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "scripts" / "test-tools.sh"


@pytest.fixture
def bare(tmp_path: pathlib.Path) -> dict[str, str]:
    """A machine with nothing but a shell and its company."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "sort", "tr", "sed", "id", "python3"):
        found = sys.executable if name == "python3" else shutil.which(name)
        assert found, name
        (programs / name).symlink_to(found)
    return {"PATH": str(programs), "HOME": str(tmp_path)}


def tools(what: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(TOOLS), what], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def test_what_is_missing_is_told_by_package(bare: dict[str, str]) -> None:
    packages = tools("missing", bare).stdout.split()
    assert {"transmission-daemon", "gcc", "libc6-dev", "make"} <= set(packages)
    assert packages == sorted(set(packages))


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("false", 0), ("1", 0)])
def test_a_machine_without_apt_goes_on_without_the_programs(bare: dict[str, str], ci: str, code: int) -> None:
    done = tools("install", {**bare, "CI": ci})
    assert (done.returncode, done.stdout) == (code, "")
    assert "there is no apt-get" in done.stderr
    assert "transmission-daemon" in done.stderr


def test_nothing_is_installed_against_the_will_of_who_runs_it(bare: dict[str, str], tmp_path: pathlib.Path) -> None:
    apt = tmp_path / "bin" / "apt-get"
    apt.write_text("#!/bin/sh\necho apt-get ran\n")
    apt.chmod(0o755)
    done = tools("install", {**bare, "KEYNET_INSTALL": "no"})
    assert (done.returncode, done.stdout) == (0, "")
    assert "KEYNET_INSTALL=no" in done.stderr


def test_root_with_apt_gets_what_is_missing(bare: dict[str, str], tmp_path: pathlib.Path) -> None:
    """And nothing is started: Debian starts services that it installs, unless it is told not to."""
    did = tmp_path / "did"
    for name, does in {
        "id": "echo 0",
        "apt-get": f'echo "apt-get $*" >> {did}',
        "tee": f'cat > /dev/null; echo "tee $*" >> {did}',
        "cat": "while read -r line; do :; done",
        "chmod": ":",
        "rm": f'echo "rm $*" >> {did}',
        "env": 'shift; "$@"',
    }.items():
        program = tmp_path / "bin" / name
        program.unlink(missing_ok=True)
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    done = tools("install", bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("installing what the tests need: ")
    update, *rest = did.read_text().splitlines()
    assert update == "apt-get update -qq"
    (install,) = [line for line in rest if line.startswith("apt-get install")]
    assert "transmission-daemon" in install.split()
    if not pathlib.Path("/usr/sbin/policy-rc.d").exists():
        assert rest[0] == "tee /usr/sbin/policy-rc.d"
        assert rest[-1] == "rm -f /usr/sbin/policy-rc.d"


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_did_not_run_is_named_with_its_reason() -> None:
    report = load("not_run").report
    lines = [
        "tests/nat/test_lan.py::test_one\tneeds Linux and root",
        "tests/nat/test_lan.py::test_two\tneeds Linux and root",
        "tests/relay::failing::one\tturnserver is missing (coturn)",
        "tests/relay::failing::one\tturnserver is missing (coturn)",
    ]
    said = report(lines, "coturn nftables", root=False)
    assert "Not run: 3." in said
    assert "  needs Linux and root\n    tests/nat/test_lan.py: 2\n" in said
    assert "  turnserver is missing (coturn)\n    tests/relay: 1\n" in said
    assert "apt-get install coturn nftables" in said
    assert "must be root" in said
    assert "must be root" not in report(lines, "coturn", root=True)
    assert report([], "coturn", root=False) == ""


# -- whoever runs it ---------------------------------------------------------------------------------------------------


def test_a_test_sees_nothing_of_the_user_who_runs_it() -> None:
    theirs = {
        "PATH": "/bin",
        "CI": "true",
        "CARGO_HOME": "/c",
        "KEYNET_CASES": "5",
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "nonsense",
        "KEYNET_RENDEZVOUS": "v",
        "KEYNET_CREDENTIALS": "a:b",
        "XDG_RUNTIME_DIR": "/run/user/1",
        "XDG_CONFIG_HOME": "/elsewhere",
        "HOME": "/home/somebody",
        "LANG": "de_DE.ISO-8859-1",
        "LC_MESSAGES": "fr_FR",
        "NO_COLOR": "1",
        "OTEL_SDK_DISABLED": "true",
        "PYTHONWARNINGS": "error",
    }
    clean = surroundings.clean(theirs)
    assert {name for name in clean if name in theirs} == {"PATH", "CI", "CARGO_HOME", "KEYNET_CASES"}
    assert clean["LC_ALL"] == "C.UTF-8"


def test_every_test_has_a_home_and_a_runtime_folder_of_its_own(tmp_path: pathlib.Path) -> None:
    """In a process that was started as badly as can be."""
    (tmp_path / "test_it.py").write_text(
        "import os, pathlib, signal, subprocess, sys\n"
        "seen = set()\n"
        "def look():\n"
        "    assert not [name for name in os.environ if name.lower().endswith('_proxy')]\n"
        "    for name in ('HOME', 'XDG_RUNTIME_DIR', 'XDG_CONFIG_HOME'):\n"
        "        assert 'theirs' not in os.environ[name]\n"
        "    assert pathlib.Path(os.environ['XDG_RUNTIME_DIR']).stat().st_mode & 0o777 == 0o700\n"
        "    assert os.environ['HOME'] not in seen\n"
        "    seen.add(os.environ['HOME'])\n"
        "    ask = 'from signal import *; print(getsignal(SIGINT), getsignal(SIGHUP) is SIG_DFL)'\n"
        "    said = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout\n"
        "    assert 'default_int_handler' in said and 'True' in said, said\n"
        "def test_one(): look()\n"
        "def test_two(): look()\n"
    )
    for name in ("conftest.py", "surroundings.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    theirs = tmp_path / "theirs"
    environment = dict.fromkeys(("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"), str(theirs))

    def ignoring() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9", "https_proxy": "nonsense", **environment},
        preexec_fn=ignoring,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
