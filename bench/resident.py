"""How much memory our processes take while something runs: the client here, the agent on the host. Linux's /proc."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machines import PATIENCE, find_marked

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

EVERY = 0.05
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_PARENT = re.compile(r"PPid:\s+(\d+)")


class Resident:
    """Watches from a thread the kernel's own peaks (VmHWM), in MB, as last seen; `begin` says from when growth counts."""

    def __init__(self, mark: str, client: int) -> None:
        self._mark = mark
        self._pid = client
        self._client: list[float] = []
        self._agent: list[float] = []
        self._begun = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def begin(self) -> None:
        """Count growth from now on: the first bytes are here."""
        self._begun.set()

    @property
    def client_growth(self) -> float:
        """How far the client's peak went up."""
        return self._client[-1] - self._client[0] if self._client else 0.0

    @property
    def agent_growth(self) -> float:
        """How far the agent's peak went up."""
        return self._agent[-1] - self._agent[0] if self._agent else 0.0

    @property
    def peaks(self) -> tuple[float, float]:
        """The most that the client and the agent have had."""
        return max(self._client, default=0.0), max(self._agent, default=0.0)

    def _watch(self) -> None:
        self._begun.wait(PATIENCE)
        while not self._over.wait(EVERY):
            self._client += filter(None, [read_peak(self._pid)])
            agents = [read_peak(pid) for pid in find_marked(self._mark) if is_agent(pid)]
            self._agent += filter(None, [max(agents, default=0.0)])


def read_peak(pid: int) -> float:
    """Return a process's peak resident memory in MB (10^6 bytes); 0 when it is gone."""
    found = _PEAK.search(_read(pid, "status"))
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def is_agent(pid: int) -> bool:
    """Tell our agent, Python isolated and started by sshd, from the supervisor and the training, which left sshd."""
    parent = _PARENT.search(_read(pid, "status"))
    return "-I\0-S\0" in _read(pid, "cmdline") and parent is not None and _is_sshd(int(parent[1]))


def _is_sshd(pid: int) -> bool:
    return _read(pid, "comm").startswith("sshd")


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""
