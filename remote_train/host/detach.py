"""Leave a connection behind: what must go on when it is lost holds none of its descriptors, else sshd would wait."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Iterable


def leave_connection(words: int, keep: Iterable[int]) -> None:
    """Read nothing, write to `words`, close every other descriptor but `keep`, and stand in no folder."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (words, 1), (words, 2)):
        os.dup2(source, target)
    limit = os.sysconf("SC_OPEN_MAX")
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, limit if 0 < limit < 65536 else 65536)
    os.chdir("/")
