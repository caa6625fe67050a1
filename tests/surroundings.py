"""What surrounds a test, whoever runs it: variables, folders and signals.

A test must not depend on the shell that it was started from. `take_over` makes pytest's own process clean once, and so
every child; `fresh` gives each test a home and a runtime folder of its own, where no other node of the user is.
"""

from __future__ import annotations

import contextlib
import functools
import locale
import os
import re
import shutil
import signal
import site
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

# What stays of the caller's variables: where programs are, and what asks tools or these tests for something. All else
# goes: proxies, languages, KEYNET_RENDEZVOUS and its kin, XDG_*. A list of what goes would never be complete.
_STAYS = re.compile(
    r"PATH|TMPDIR|USER|LOGNAME|SHELL|VIRTUAL_ENV|LD_LIBRARY_PATH|DYLD_\w+|CI"
    r"|PYTHON(PATH|DEVMODE|FAULTHANDLER|DONTWRITEBYTECODE|PYCACHEPREFIX|HASHSEED)|PYTEST_\w+|COV(ERAGE)?_\w+"
    r"|CARGO\w*|RUST\w*|LLVM_\w+|[ALTU]B?SAN_OPTIONS"
    r"|KEYNET_(UTP_BRIDGE|NOT_RUN|CASES|SEED|WRITE_MATRIX|LAB_LOG|REGENERATE|BLESS|DEBUG)"
)
# the parts of a UNIX socket's name that a test adds need their room: it has 107 bytes in all
_LONGEST_FOLDER = 30


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a test, made of the caller's; without home and runtime folder."""
    kept = {name: value for name, value in environment.items() if _STAYS.fullmatch(name)}
    # a user's own packages are found by HOME otherwise
    return kept | {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONUSERBASE": site.getuserbase()}


def take_over(environment: MutableMapping[str, str]) -> None:
    """Makes this process, and so its children, independent of who started it."""
    wanted = clean(environment)
    for name in list(environment):
        if name not in wanted:
            del environment[name]
    environment.update(wanted)
    time.tzset()
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    os.umask(0o022)
    _take_signals()


def _take_signals() -> None:
    """What a background job or nohup ignores is not ignored by the children of a test."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_IGN:
            # This process goes on ignoring it by a handler that does nothing; what it starts has the default
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else _nothing)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@functools.cache
def has_ipv6() -> bool:
    """Whether there is a loopback address of IPv6. Containers often have none."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _nothing(*_: object) -> None:
    """For a signal that stays ignored."""


@contextlib.contextmanager
def fresh() -> Iterator[dict[str, str]]:
    """The variables that name a home and a runtime folder that nobody else uses; both go at the end."""
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="kn", dir=base if len(base) <= _LONGEST_FOLDER else "/tmp"))
    home, runtime = folder / "home", folder / "run"
    try:
        for made in (home, runtime):
            made.mkdir(mode=0o700)
        yield {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(runtime),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "XDG_DATA_HOME": str(home / ".local/share"),
            "XDG_STATE_HOME": str(home / ".local/state"),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
