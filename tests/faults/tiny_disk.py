"""Real file systems of a few megabytes: tmpfs and, on a loop device, ext4. Mounted by root, else the test is skipped.

Who is not root runs them all the same in namespaces of their own: `unshare -Urm scripts/test tests/faults`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = 4096
FILLER = ".filler"


@dataclass(frozen=True)
class TinyDisk:
    """A mounted file system, and ways to fill it up."""

    place: Path

    @property
    def free(self) -> int:
        """The bytes that may still be written."""
        found = os.statvfs(self.place)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all the space but `leave` bytes, as another program would."""
        fd = os.open(self.place / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with contextlib.suppress(OSError):
                while (size := self.free - leave) >= BLOCK:
                    os.posix_fallocate(fd, os.fstat(fd).st_size, size // BLOCK * BLOCK)
            with contextlib.suppress(OSError):  # what the file system keeps for its own lists of blocks
                while not leave:
                    os.write(fd, bytes(BLOCK))
        finally:
            os.close(fd)

    def release(self) -> None:
        """Give back what `fill` took."""
        (self.place / FILLER).unlink(missing_ok=True)

    def remount(self, mode: str) -> None:
        """Make it `ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{mode}", self.place], check=True, capture_output=True)


@contextlib.contextmanager
def tiny_tmpfs(place: Path, size: int) -> Iterator[TinyDisk]:
    """Mount a tmpfs of `size` bytes at a folder until the block ends."""
    with _mounted(place, ["-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs"]) as disk:
        yield disk


@contextlib.contextmanager
def tiny_ext4(place: Path, image: Path, size: int) -> Iterator[TinyDisk]:
    """Mount an ext4 of `size` bytes in a sparse file."""
    image.touch()
    os.truncate(image, size)
    try:
        subprocess.run(
            ["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", image],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mkfs.ext4 is not to be had: {error}")
    with _mounted(place, ["-o", "loop", str(image)]) as disk:
        place.chmod(0o700)
        yield disk


@contextlib.contextmanager
def _mounted(place: Path, options: list[str]) -> Iterator[TinyDisk]:
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        yield TinyDisk(place)
    finally:
        subprocess.run(["umount", "-l", place], check=True, capture_output=True)
