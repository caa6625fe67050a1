"""What is installed beside the package, and what is said where it is missing; and by which name the package comes."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import keynet
from keynet import _extras
from keynet._extras import DISTRIBUTION, install

ROOT = pathlib.Path(__file__).resolve().parents[2]
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# the modules that need something, what to take away, and the extra that brings it
NEEDS = [
    ("keynet.grpc", "grpc", "grpc"),
    ("keynet.metrics", "prometheus_client", "metrics"),
    ("keynet.tracing", "opentelemetry", "tracing"),
    ("keynet.rendezvous", "grpc", "rendezvous"),
    ("keynet.rendezvous", "google", "rendezvous"),
]


def program(text: str, *without: str) -> subprocess.CompletedProcess[str]:
    """Runs a program on a Python where these packages are not installed."""
    head = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {without!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
    return subprocess.run([sys.executable, "-c", head + text], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("module", "missing", "extra"), NEEDS)
def test_a_missing_package_is_named_with_what_installs_it(module: str, missing: str, extra: str) -> None:
    wanted = f"ModuleNotFoundError: {module} needs packages that are not installed (No module named '{missing}"
    for text in (f"import {module}", f"import keynet; {module}", f"from keynet import {module.partition('.')[2]}"):
        done = program(text, missing)
        last = done.stderr.splitlines()[-1]
        assert last.startswith(wanted), done.stderr
        assert last.endswith(f": {install(extra)}")


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["demo"], "grpc", "demo"),
        (["rendezvous"], "grpc", "rendezvous"),
        (["rendezvous", "--nats", "nats://127.0.0.1:1"], "nats", "rendezvous"),
        (["up", "--metrics", "127.0.0.1:0", "--listen", "127.0.0.1:0"], "prometheus_client", "metrics"),
    ],
)
def test_the_command_says_it_too(arguments: list[str], missing: str, extra: str) -> None:
    done = program(f"import keynet.cli; sys.exit(keynet.cli.main({arguments!r}))", missing)
    assert done.returncode == 2, done.stderr
    assert install(extra) in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_older_package_is_named_with_what_updates_it() -> None:
    wanted = r"newer packages .*pip install --upgrade 'pykeynet\[demo\]'"
    with pytest.raises(ImportError, match=wanted), _extras.needed_by("keynet.demo", "demo"):
        raise RuntimeError("The grpc package installed is at version 1.0, but the generated code wants 1.85.1")


def test_a_fault_of_keynet_itself_is_not_called_a_missing_package() -> None:
    with pytest.raises(ImportError, match=r"^no such name$"), _extras.needed_by("keynet.grpc", "grpc"):
        raise ImportError("no such name", name="keynet._info")


def test_what_others_need_is_loaded_when_it_is_used() -> None:
    text = """
import keynet
assert not {name for name in ("grpc", "keynet.grpc", "keynet.relay", "keynet.metrics") if name in sys.modules}
assert keynet.relay.RelayServer and keynet.grpc.channel and keynet.rendezvous.Server
assert keynet.metrics.serve and keynet.tracing.traced
from keynet import *
"""
    done = program(text)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        keynet.nonsense  # noqa: B018


def test_looking_at_the_package_needs_no_extras() -> None:
    text = "import inspect, pydoc, keynet; inspect.getmembers(keynet); assert 'Proxy' in pydoc.render_doc(keynet)"
    done = program(text, "grpc", "prometheus_client", "opentelemetry", "google")
    assert done.returncode == 0, done.stderr


# -- the name ----------------------------------------------------------------------------------------------------------


def test_the_name_is_that_of_the_project() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert DISTRIBUTION != "keynet"
    for _, _, extra in NEEDS:
        assert extra in PROJECT["optional-dependencies"]


def texts() -> dict[str, str]:
    """Everything that is read by people, or said to them."""
    listed = None
    if shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed is not None and listed.returncode == 0:
        paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:  # no git, or a checkout without it
        paths = [path for top in ("docs", "python", "scripts", "examples", "rust") for path in (ROOT / top).rglob("*")]
        paths += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    wanted = {".md", ".py", ".pyi", ".rs", ".sh", ".toml", ".json", ".1", ""}
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in paths
        if path.suffix in wanted
        and path.is_file()
        and "corpus" not in path.parts
        and path != pathlib.Path(__file__).resolve()
    }


# `pip install keynet`, `pip install -U "keynet[grpc]"`, `uv add keynet`, keynet[grpc]>=1: whatever fetches by this name
STRANGER = re.compile(
    r"\b(?:pip3?|pipx|uv|uvx|poetry|pdm|conda|easy_install)\b[ \w.-]*? (?:install|add|run|tool|download)\b"
    r"(?: +-\S+)* +['\"`(\[]*keynet\b(?![./\w-])|(?<![\w-])keynet\[\w+(?:, ?\w+)*\]"
    r"|(?:pip3?|uv|uvx|poetry|pdm) (?:install|add|run|download)(?: +-\S+)* +['\"`]*keynet(?![\w./-])"
)


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("pip install keynet", True),
        ("`pip install keynet[grpc]`", True),
        ("pip install -U 'keynet[grpc]'", True),
        ("python3 -m pip install --upgrade keynet", True),
        ("uv add keynet", True),
        ("pipx run keynet", True),
        ("needs keynet[metrics]", True),
        ("pip install 'pykeynet[grpc]'", False),
        ("pip install '.[grpc]'", False),
        ("pip install dist/pykeynet.whl", False),
        ("keynet.Proxy(identity)", False),
        ("pip uninstall --quiet --yes keynet", False),
    ],
)
def test_the_search_finds_what_it_is_for(text: str, bad: bool) -> None:
    assert bool(STRANGER.search(text)) is bad


def test_no_text_tells_to_install_the_package_of_a_stranger() -> None:
    found = {name: match[0] for name, text in texts().items() if (match := STRANGER.search(text))}
    assert found == {}
    assert len(texts()) > 100


def test_extras_that_texts_name_exist() -> None:
    named = {
        extra.strip()
        for text in texts().values()
        for extras in re.findall(rf"{DISTRIBUTION}\[([a-z, ]+)\]", text)
        for extra in extras.split(",")
    }
    assert named
    assert named <= set(PROJECT["optional-dependencies"])
