"""Of several hosts, those without the GPUs that are wanted are passed over, and those whose GPUs are in use come after free ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.errors import HostBusy, HostSpace, HostUnfit, UsageError
from remote_train.plan import find_words
from remote_train.refusals import hint_of
from remote_train.wanted import VISIBLE, may_be_there, parse_gpus

if TYPE_CHECKING:
    from typing import Any

    from remote_train.plan import Job
    from remote_train.reach import Reached


class Occupied:
    """Hosts whose GPUs are in use: they come after free ones. Without a job none is asked.

    Those that have not the GPUs of the job are let go of, and why is added to `unfit`.
    """

    def __init__(self, job: Job | None, unfit: list[HostUnfit | HostSpace]) -> None:
        self._job = job
        self._unfit = unfit
        self.found: list[tuple[Reached, str]] = []

    def takes(self, reached: Reached) -> bool:
        """Tell whether a host is to be taken now; one that is busy is kept for later, unless that ends the command."""
        said = None
        if self._job is not None:
            try:
                said = find_busy(reached, self._job)
            except (HostUnfit, HostSpace) as error:
                reached.session.close()
                self._unfit.append(error)
                return False
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
    """Return who uses the GPUs that a job wants on a host, None where they are free or the job does not care.

    Raises HostUnfit for a host that has not those, UsageError where none could.
    """
    host = reached.link.host
    if host.device != "cuda":
        return None
    wanted = _choose_wanted(reached, job)
    if job.on_busy not in ("queue", "next"):
        return None
    answer = reached.session.request("queue", gpus=wanted)
    return None if answer["free"] else f"{host.name}: {answer['said']}"


def _choose_wanted(reached: Reached, job: Job) -> dict[str, Any]:
    """Return the GPUs that a job wants there; what is remembered of a host is looked at again before it is passed over."""
    link = reached.link
    try:
        visible = find_words(job, link.host, reached.facts).get(VISIBLE)
        return parse_gpus(job.gpus, reached.facts, visible)
    except (HostUnfit, UsageError) as error:
        if isinstance(error, UsageError) and not may_be_there(job.gpus):
            raise
        if link.looked is None:
            reached.facts = link.read_facts(reached.session, fresh=True)
            return _choose_wanted(reached, job)
        raise HostUnfit(f"{link.host.name}: {error.message}", hint=error.hint) from error
