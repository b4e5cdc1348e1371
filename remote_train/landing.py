"""Where what a host names may land here: below a folder that we chose, under a name that no terminal obeys."""

from __future__ import annotations

import os

from remote_train.host.units import is_nameable

PATH = 4096
NAME_BYTES = 255
PARTIAL = ".remote-train-partial"
"""Ends the name of a file that is not whole."""


def is_place(path: object) -> bool:
    """Tell whether a host's relative path may be joined to a folder of ours."""
    return isinstance(path, str) and len(path) <= PATH and all(map(_is_name, path.split("/")))


def _is_name(part: str) -> bool:
    try:
        named = part not in {"", ".", ".."} and is_nameable(part) and not part.endswith(PARTIAL)
        return named and len(os.fsencode(part)) <= NAME_BYTES
    except UnicodeEncodeError:
        return False
