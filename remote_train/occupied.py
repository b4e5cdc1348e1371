"""Hosts whose GPUs are in use come after free ones: which of several hosts is taken then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.errors import HostBusy, HostUnfit, UsageError
from remote_train.refusals import hint_of
from remote_train.wanted import VISIBLE, parse_gpus

if TYPE_CHECKING:
    from remote_train.reach import Reached


class Occupied:
    """Hosts whose GPUs are in use: they come after free ones."""

    def __init__(self, gpus: str, on_busy: str, *, asks: bool) -> None:
        self._gpus = gpus
        self._on_busy = on_busy
        self._asks = asks
        self.found: list[tuple[Reached, str]] = []

    def takes(self, reached: Reached) -> bool:
        """Tell whether a host is to be taken now; one that is busy is kept for later, unless that ends the command."""
        said = None
        if self._asks and self._on_busy in ("queue", "next"):
            try:
                said = find_busy(reached, self._gpus)
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
        if self._on_busy == "next":
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


def find_visible(reached: Reached) -> str | None:
    """Return what hosts.toml or the login there says about which GPUs a run may see."""
    said = {**reached.facts.get("thread_env", {}), **reached.link.host.env}.get(VISIBLE)
    return None if said is None else str(said)


def find_busy(reached: Reached, gpus: str) -> str | None:
    """Return who uses the GPUs that are wanted on a host, None where they are free or it has none such."""
    if reached.link.host.device != "cuda":
        return None
    try:
        wanted = parse_gpus(gpus, reached.facts, find_visible(reached))
    except (HostUnfit, UsageError):  # the plan says so
        return None
    answer = reached.session.request("queue", gpus=wanted)
    return None if answer["free"] else f"{reached.link.host.name}: {answer['said']}"
