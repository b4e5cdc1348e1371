"""From a run's end to what the user is told: nothing for success, else an error with the right exit code."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from remote_train.errors import (
    HostSpace,
    HostUnfit,
    RemoteTrainError,
    RunLost,
    RunStopped,
    StartFailed,
    TrainingFailed,
)
from remote_train.gaps import render_gap_hint

if TYPE_CHECKING:
    from remote_train.follow import Outcome


_START_KINDS: dict[str, type[RemoteTrainError]] = {"host-space": HostSpace, "host-unfit": HostUnfit}
"""What was in the way of a training that could not be started, where it was not the training itself."""


def render_end(code: int | None, number: int | None) -> str:
    """Return how a process ended, in words."""
    if number is not None:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        return f"ended by signal {number} ({name})"
    return f"ended with code {code}"


def make_verdict(run: str, host: str, outcome: Outcome) -> RemoteTrainError | None:
    """Return the error a run's end amounts to, None for a training that ended with 0."""
    ended = outcome.exit
    if ended is None:
        return RunLost(
            f"{run} is gone from {host} without an exit record: the host was restarted or its supervisor was killed",
            hint=f"`remote-train pull {run}` brings what it saved; `remote-train show {run}` shows how far it came",
        )
    facts = {"run": run, "code": ended.get("code"), "signal": ended.get("signal")}
    if ended.get("start_error"):
        kind = _START_KINDS.get(str(ended.get("start_kind")), StartFailed)
        return kind(f"{run} did not start on {host}: {ended['start_error']}", **facts)
    if ended.get("stopped"):
        return RunStopped(f"{run} was stopped", **facts)
    if ended.get("code") == 0:
        return None
    return TrainingFailed(
        f"the training {render_end(ended.get('code'), ended.get('signal'))}{_rank(ended)}",
        hint=f"the whole output: `remote-train logs {_rank_option(ended)}{run}`{render_gap_hint(ended)}",
        rank=(ended.get("first_failure") or {}).get("rank"),
        **facts,
    )


def _rank_option(ended: dict[str, Any]) -> str:
    rank = (ended.get("first_failure") or {}).get("rank")
    return f"--rank {rank} " if rank else ""


def _rank(ended: dict[str, Any]) -> str:
    first = ended.get("first_failure")
    return f"; rank {first['rank']} failed first" if first and len(ended.get("outputs", {})) > 1 else ""
