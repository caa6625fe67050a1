"""Where a user's things are, on machines where that cannot be taken for granted."""

from __future__ import annotations

import os
import pathlib
import pwd

__all__ = ["home_folder", "make_private"]


def make_private(folder: pathlib.Path) -> None:
    """Makes a folder of this user alone, and the folders above it that are missing, whatever the umask is.

    Who can write one above could put another in its place. Raises OSError.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
        # a umask that takes away the owner's own rights is no wish
        one.chmod(0o700)


def home_folder() -> str | None:
    """The user's home; None where there is none: no HOME and no line in passwd, as in a container."""
    home = os.environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return home if home.startswith("/") else None
