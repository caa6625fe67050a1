"""While the command `keynet` is being loaded, Ctrl-C ends it as it ends a program without Python: no traceback.

The package is imported before `keynet.cli.main` can catch anything, and that takes some tenths of a second.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

__all__ = ["is_command"]


def is_command() -> bool:
    """Whether this process is the command, not a program that imports the package."""
    given = sys.orig_argv[1:]
    if "-m" in given:
        return given[given.index("-m") + 1 :][:1] == ["keynet"]
    return os.path.basename(sys.argv[0]) == "keynet" and sys.argv[0] in given


def _quiet() -> None:
    if threading.current_thread() is not threading.main_thread() or not is_command():
        return
    # one that is ignored (nohup, a job in the background) stays so; `main` takes over
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


_quiet()
