"""Hosts whose GPUs are in use come after free ones: which of several hosts is taken then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.errors import HostBusy, HostUnfit, UsageError
from remote_train.plan import find_words
from remote_train.refusals import hint_of
from remote_train.wanted import VISIBLE, parse_gpus

if TYPE_CHECKING:
    from remote_train.plan import Job
    from remote_train.reach import Reached


class Occupied:
    """Hosts whose GPUs are in use: they come after free ones. Without a job none is asked."""

    def __init__(self, job: Job | None) -> None:
        self._job = job
        self.found: list[tuple[Reached, str]] = []

    def takes(self, reached: Reached) -> bool:
        """Tell whether a host is to be taken now; one that is busy is kept for later, unless that ends the command."""
        said = None
        if self._job is not None and self._job.on_busy in ("queue", "next"):
            try:
                said = find_busy(reached, self._job)
            except BaseException:
                reached.session.close()
                raise
        if said is not None:
            self.found.append((reached, said))
            return False
        reached.reasons += [said for _, said in self.found]
        self.close()
        return True

    def choose(self, reasons: list[str]) -> Reached:
        """Return the first of them, to wait there; raise HostBusy where nobody wants to wait."""
        if self._job is not None and self._job.on_busy == "next":
            self.close()
            raise HostBusy(
                "\n".join([*(said for _, said in self.found), *reasons]), hint=hint_of("host-busy")
            )
        first, _ = self.found.pop(0)
        self.close()
        return first

    def close(self) -> None:
        """Let go of them."""
        for reached, _ in self.found:
            reached.session.close()


def find_busy(reached: Reached, job: Job) -> str | None:
    """Return who uses the GPUs that a job wants on a host, None where they are free or it has none such."""
    host, facts = reached.link.host, reached.facts
    if host.device != "cuda":
        return None
    try:
        wanted = parse_gpus(job.gpus, facts, find_words(job, host, facts).get(VISIBLE))
    except (HostUnfit, UsageError):  # the plan says so
        return None
    answer = reached.session.request("queue", gpus=wanted)
    return None if answer["free"] else f"{host.name}: {answer['said']}"
