"""The seam between doing and showing: what happens is told as (kind, facts), never printed."""

from __future__ import annotations

from typing import Any, Protocol


class Listener(Protocol):
    """Whoever wants to know what a command is doing.

    Kinds: note, warn, reaching, reached, passed_over, fallback, package, data, sending, sent, started, following,
    state, quiet, restarted, peak, metric, detached, interrupted, silent, back, ended, pulled, stopping, stopped,
    pulling, arrived, dropped, remaining,
    failover, superseded.
    """

    def output(self, rank: int, data: bytes) -> None:
        """Take bytes of a rank's output, exactly as they were written."""

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (facts differ by kind)
        """Take notice of something."""


class Silent:
    """A listener that wants nothing."""

    def output(self, rank: int, data: bytes) -> None:
        """Drop it."""

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (as above)
        """Drop it."""
