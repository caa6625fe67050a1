"""Where a user's things are, on machines where that cannot be taken for granted."""

from __future__ import annotations

import os
import pwd

__all__ = ["home_folder"]


def home_folder() -> str | None:
    """The user's home; None where there is none: no HOME and no line in passwd, as in a container."""
    home = os.environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return home if home.startswith("/") else None
