"""The life of an attempt as one table: states, what can happen in each, and where that leads. Pure.

A state is never stored. What can be seen of an attempt (its files, its supervisor, its processes) is a row of
happenings, and the table leads through them from UNKNOWN to the state it is in. `python -m remote_train.host.life`
prints the table as the diagram of docs/life.md.
"""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Iterable, Tuple

UNKNOWN = "unknown"
CREATED = "created"
STARTING = "starting"
RUNNING = "running"
STOPPING = "stopping"
ENDED = "ended"
LOST = "lost"

STATES = {
    UNKNOWN: "nothing of it is on the host: never claimed, or removed since",
    CREATED: "claimed by a token; nothing of it has run yet",
    STARTING: "its supervisor lives: it waits for its turn on the GPUs, measures a peak, or brings the launcher up",
    RUNNING: "the launcher runs, or processes of the run outlived their supervisor (unsupervised)",
    STOPPING: "a stop was asked for; the grace runs, then everything of it is killed",
    ENDED: "its exit record is durable; no process of it is left, or the record names who is",
    LOST: "no exit record, no supervisor, no process: how it ended is not known",
}

CLAIMED = "claimed"
RECORDED = "recorded"
LAUNCHED = "launched"
STOP_ASKED = "stop asked"
ORPHANED = "orphaned"
GONE = "gone"
EXIT_RECORDED = "exit recorded"
REMOVED = "removed"

EVENTS = {
    CLAIMED: "a start request made the folder and wrote its token there",
    RECORDED: "the supervisor wrote attempt.json: pid, start time of the pid, boot id",
    LAUNCHED: "attempt.json says that the launcher runs",
    STOP_ASKED: "the stop file is there and the supervisor lives",
    ORPHANED: "the supervisor is dead and processes of the run live on",
    GONE: "neither the supervisor nor any process of the run is there: killed, or the host was restarted",
    EXIT_RECORDED: "exit.json is there",
    REMOVED: "the run's folder was removed to free space",
}

TRANSITIONS: Dict[Tuple[str, str], str] = {
    (UNKNOWN, CLAIMED): CREATED,
    (CREATED, RECORDED): STARTING,
    (CREATED, STOP_ASKED): CREATED,
    (CREATED, REMOVED): UNKNOWN,
    (STARTING, LAUNCHED): RUNNING,
    (STARTING, STOP_ASKED): STOPPING,
    (STARTING, ORPHANED): RUNNING,
    (STARTING, GONE): LOST,
    (STARTING, EXIT_RECORDED): ENDED,
    (RUNNING, STOP_ASKED): STOPPING,
    (RUNNING, ORPHANED): RUNNING,
    (RUNNING, GONE): LOST,
    (RUNNING, EXIT_RECORDED): ENDED,
    (STOPPING, ORPHANED): RUNNING,
    (STOPPING, GONE): LOST,
    (STOPPING, EXIT_RECORDED): ENDED,
    (ENDED, REMOVED): UNKNOWN,
    (LOST, REMOVED): UNKNOWN,
}

FINAL = (ENDED, LOST)
"""States that a run does not leave but by being removed."""


def choose_state(events: Iterable[str]) -> str:
    """Return the state that these happenings lead to, in this order, from UNKNOWN; KeyError for an impossible one."""
    state = UNKNOWN
    for event in events:
        state = TRANSITIONS[state, event]
    return state


def can_follow(before: str, after: str) -> bool:
    """Tell whether somebody who saw `before` may see `after` next, any number of happenings later."""
    seen = {before}
    waiting = [before]
    while waiting:
        state = waiting.pop()
        for (start, _), end in TRANSITIONS.items():
            if start == state and end not in seen:
                seen.add(end)
                waiting.append(end)
    return after in seen


def render_diagram() -> str:
    """Return the table as Markdown: a Mermaid diagram, and what each state and each event means."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> unknown"]
    lines += ["    %s --> %s: %s" % (start, end, event) for (start, event), end in TRANSITIONS.items()]
    lines += ["```", "", "| state | means |", "|---|---|"]
    lines += ["| %s | %s |" % row for row in STATES.items()]
    lines += ["", "| event | is seen as |", "|---|---|"]
    lines += ["| %s | %s |" % row for row in EVENTS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(render_diagram())
