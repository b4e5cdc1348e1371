"""Stop a run: ask its supervisor, wait for the end, and make sure that nothing of it is left."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from remote_train.attempts import OVER
from remote_train.errors import ConnectionGivenUp, ConnectionLost, StopIncomplete
from remote_train.host import layout
from remote_train.reconnect import Losses, Patience, reconnect

if TYPE_CHECKING:
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.session import Session

POLL_SECONDS = 0.2
MARGIN_SECONDS = 30.0
LOST_SECONDS = 60.0
"""How long to go on trying when the connection is lost in the middle of a stop."""
DONE = ("ended", "lost", "unknown", "created")


def stop_across_losses(
    run: Run, attempt: int, link: HostLink, grace: float, listener: Listener
) -> dict[str, Any]:
    """Do what `stop_run` does, again after a lost connection: a stop that is asked for twice is one stop.

    Raises ConnectionGivenUp when the host is not heard for a minute.
    """
    unknown = "whether it is stopping is not known"
    patience = Patience(run.id, LOST_SECONDS, listener, Losses(), unknown)
    session: Session | None = None
    while True:
        try:
            with contextlib.closing(session or link.connect()) as session:
                return stop_run(session, run, attempt, grace, listener)
        except ConnectionLost as loss:
            session = _come_back(link, loss, patience)


def _come_back(link: HostLink, loss: ConnectionLost, patience: Patience) -> Session:
    try:
        return reconnect(link, loss, patience, lambda _session: None)
    except ConnectionGivenUp as error:
        raise ConnectionGivenUp(
            f"{link.host.name} is not heard ({loss}); whether {patience.run} is stopped is not known",
            hint=f"`remote-train show {patience.run}` asks; `remote-train stop {patience.run}` may be repeated",
        ) from error


def stop_run(session: Session, run: Run, attempt: int, grace: float, listener: Listener) -> dict[str, Any]:
    """Return the attempt's last state once no process of it is left; raise StopIncomplete naming those that are.

    TERM goes out at once; after `grace` seconds everything of the run is killed.
    """
    truth = f"whether {run.id} was told to stop is not known; `remote-train show {run.id}` asks"
    try:
        mirrored = run.attempt(attempt).read(layout.ATTEMPT) or {}
        cookie = mirrored.get("cookie")
        asked = session.request("stop", run=run.id, attempt=attempt, grace=grace, cookie=cookie)
        truth = f"the host goes on stopping {run.id}; `remote-train show {run.id}` tells how it is"
        listener.tell("stopping", run=run.id, grace=grace, state=asked["state"])
        return _await_end(session, run, attempt, grace, asked, listener)
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal: the last thing that can be said
            listener.tell("interrupted", run=run.id, text=truth)
        raise


def _await_end(
    session: Session, run: Run, attempt: int, grace: float, asked: dict[str, Any], listener: Listener
) -> dict[str, Any]:
    deadline = time.monotonic() + grace + MARGIN_SECONDS
    state = session.request("state", run=run.id, attempt=attempt)
    while state["state"] not in DONE and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        state = session.request("state", run=run.id, attempt=attempt)
    if state["state"] == "unknown" and run.known_state() not in OVER:
        raise StopIncomplete(
            f"{run.id} is not known on {session.host}: it may be on its way there, or its folder was removed",
            hint=f"`remote-train show {run.id}` asks again; what bore its mark there was killed",
        )
    survivors = session.request("sweep", run=run.id, attempt=attempt)["survivors"] or asked["survivors"]
    if state["state"] not in DONE or survivors:
        raise StopIncomplete(
            f"{run.id}: processes are still there: {', '.join(map(str, survivors)) or 'its supervisor'}",
            hint="a process in an uninterruptible wait ends only with what it waits for; run `stop` again later",
            survivors=survivors,
        )
    ended = state.get("exit") or {}
    held = ended.get("gpu_held") or []
    if held:
        places = ", ".join(f"GPU {item['index']} by pid {item['pid']}" for item in held)
        raise StopIncomplete(
            f"{run.id}: its processes are gone and GPU memory is still held: {places}",
            hint="the driver has not let go of it; `nvidia-smi` on the host shows whether it does later",
            gpu_held=held,
        )
    if "gpu_held" in ended and ended["gpu_held"] is None:
        listener.tell(
            "warn", text=f"whether the GPUs of {run.id} are free again is not known: their driver is silent"
        )
    return state
