"""Where what a host names may land here: below a folder that we chose, under a name that no terminal obeys."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from remote_train.host.manifest_format import MAX_PARTS
from remote_train.host.units import is_nameable

if TYPE_CHECKING:
    from pathlib import Path

PATH = 4096
NAME_BYTES = 255
PARTIAL = ".remote-train-partial"
"""Ends the name of a file that is not whole."""


def is_place(path: object) -> bool:
    """Tell whether a host's relative path may be joined to a folder of ours."""
    if not isinstance(path, str) or len(path) > PATH:
        return False
    parts = path.split("/")
    return len(parts) <= MAX_PARTS and all(map(_is_name, parts))


def refuse_links(top: Path, place: Path) -> None:
    """Raise OSError where the way from `top` to a place goes through a link: what a host sends would land elsewhere."""
    folders = [folder for folder in place.parents if folder != top and folder.is_relative_to(top)]
    link = next((folder for folder in folders if folder.is_symlink()), None)
    if link is not None:
        raise OSError(errno.ELOOP, f"{link} is a link, and what a host sends goes through none", str(place))


def _is_name(part: str) -> bool:
    try:
        named = part not in {"", ".", ".."} and is_nameable(part) and not part.endswith(PARTIAL)
        return named and len(os.fsencode(part)) <= NAME_BYTES
    except UnicodeEncodeError:
        return False
