"""How much memory our two ends take at most, by the kernel's own count (VmHWM)."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from tests.host.account_kit import agents_of

GROWTH = 64 << 20
"""Bytes that a process may grow by while any amount of output goes through it."""


def read_peak(pid: int) -> int:
    """Return a process's peak resident memory in bytes, 0 when it is gone."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


class Growth:
    """The growth of a client and of the agents in a home, from the first look on."""

    def __init__(self, client: int, home: Path) -> None:
        self.client = client
        self.home = home
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}

    def look(self) -> None:
        """Take the peaks as they are now."""
        for pid in [self.client, *agents_of(self.home)]:
            peak = read_peak(pid)
            if peak:
                self._first.setdefault(pid, peak)
                self._last[pid] = peak

    def check(self) -> str:
        """Assert that nobody grew by more than GROWTH, and that both ends were seen; return the figures."""
        grown = {pid: self._last[pid] - first for pid, first in self._first.items()}
        assert len(grown) > 1, "the agent was never seen"
        assert max(grown.values()) <= GROWTH, grown
        agents = [size for pid, size in grown.items() if pid != self.client]
        return f"client +{grown[self.client] >> 20} MiB, agent +{max(agents) >> 20} MiB"
