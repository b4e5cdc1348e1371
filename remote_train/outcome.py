"""From a run's end to what the user is told: nothing for success, else an error with the right exit code."""

from __future__ import annotations

import signal
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Standing:
    """How far a run came, as far as it is known."""

    step: int | None = None
    steps: int | None = None
    checkpoint: str | None = None
    """The newest: a path here if it is `home`, else as the host names it."""
    home: bool = False


def render_standing(run: str, standing: Standing) -> str:
    """Return how far a run came in one line, "" when nothing is known."""
    parts = []
    if standing.step is not None:
        parts.append(f"last step {standing.step}" + (f" of {standing.steps}" if standing.steps else ""))
    if standing.checkpoint is not None:
        place = "here" if standing.home else f"on the host: `remote-train pull {run}`"
        parts.append(f"newest checkpoint {standing.checkpoint} ({place})")
    elif standing.home:
        parts.append("no checkpoint was made")
    return "; ".join(parts)


def render_end(code: int | None, number: int | None) -> str:
    """Return how a process ended, in words."""
    if number is not None:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        return f"ended by signal {number} ({name})"
    return "ended in a way that nobody saw" if code is None else f"ended with code {code}"


def has_failed(outcome: Outcome) -> bool:
    """Tell whether a training ended by itself and not well."""
    ended = outcome.exit or {}
    unwell = ended.get("code") != 0 and not ended.get("stopped") and not ended.get("start_error")
    return outcome.exit is not None and unwell


def make_verdict(
    run: str, host: str, outcome: Outcome, standing: Standing | None = None
) -> RemoteTrainError | None:
    """Return the error a run's end amounts to, None for a training that ended with 0."""
    ended = outcome.exit
    line = render_standing(run, standing or Standing())
    if ended is None:
        return RunLost(
            _join(f"{run} is lost: {_render_loss(outcome, host)}; how it ended is not known", line),
            hint=f"`remote-train logs {run}` shows what it printed; start it again with `remote-train run`",
            run=run,
            why=outcome.why,
        )
    facts = {"run": run, "code": ended.get("code"), "signal": ended.get("signal")}
    if ended.get("start_error"):
        kind = _START_KINDS.get(str(ended.get("start_kind")), StartFailed)
        return kind(f"{run} did not start on {host}: {ended['start_error']}", **facts)
    if ended.get("stopped"):
        return RunStopped(_join(f"{run} was stopped", line), **facts)
    if ended.get("code") == 0:
        return None
    first = ended.get("first_failure") or {}
    return TrainingFailed(
        _join(_render_failure(ended), line),
        hint=f"the whole output: `remote-train logs {_rank_option(first)}{run}`{render_gap_hint(ended)}",
        rank=first.get("rank"),
        error_file=first.get("error_file"),
        **facts,
    )


def _join(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


def _render_loss(outcome: Outcome, host: str) -> str:
    if outcome.why is None:
        return f"it is gone from {host}"
    return f"{outcome.why} ({host})"


def _render_failure(ended: dict[str, Any]) -> str:
    """Return who failed, how, and what is known of the reason."""
    first = ended.get("first_failure")
    who = "the training" if first or ended.get("signal") is None else _name_launcher(ended)
    words = f"{who} {render_end(ended.get('code'), ended.get('signal'))}"
    if first and len(ended.get("outputs", {})) > 1:
        words += f"; rank {first['rank']} failed first"
    if ended.get("restarts"):
        words += f"; torchrun had restarted it {ended['restarts']} times"
    if ended.get("signal") == signal.SIGKILL:
        words += _render_kill(ended.get("oom_kills"))
    return _join(words, str((first or {}).get("error") or ""))


def _name_launcher(ended: dict[str, Any]) -> str:
    return "torchrun" if ended.get("launcher") == "torchrun" else "the training"


def _render_kill(oom_kills: object) -> str:
    """Return what is known of a SIGKILL that was not ours."""
    if isinstance(oom_kills, int) and oom_kills > 0:
        return f"; the host ran out of memory meanwhile: its kernel killed {oom_kills} processes"
    return "; somebody killed it, or the host ran out of memory" if oom_kills is None else ""


def _rank_option(first: dict[str, Any]) -> str:
    rank = first.get("rank")
    return f"--rank {rank} " if rank else ""
