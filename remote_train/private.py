"""Folders and files of this laptop's own: closed to everybody else whatever the umask, from the first moment on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path


def make_private(folder: Path) -> None:
    """Make a folder, closed to others like those above it that have to be made."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def open_append(path: Path) -> BinaryIO:
    """Open a file to append to, unbuffered; it is made where there is none, and a link in its place is an OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return os.fdopen(fd, "ab", buffering=0)
