"""Follow one attempt for a laptop: its outputs, its clock, its changes of state, and its end."""

from __future__ import annotations

import os
import time

from remote_train.host import attempt, ends, layout, life
from remote_train.host.durable import read_record
from remote_train.host.sources import Tail
from remote_train.host.start import Refusal

QUIET_SECONDS = 600.0
"""Without a byte of output for this long a run may hang: said once, and again whenever the time has doubled."""

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from remote_train.host.agent import Connection
    from remote_train.host.commits import Watching


class Follower:
    """One `follow` request."""

    def __init__(self, connection: Connection, folder: str, request: Dict[str, Any]) -> None:
        self.connection = connection
        self.folder = folder
        self.run = request["run"]
        self.number = request["attempt"]
        self.forever = bool(request.get("wait", True))
        self.tails: List[Tail] = []
        self.last: Optional[List[Any]] = None
        self.quiet_limit = QUIET_SECONDS
        self.restarts = 0
        self.peak_sent = False
        self.waited = False
        self.over: Optional[Dict[str, Any]] = None
        globs = request.get("checkpoints")
        self.checkpoints = Checkpoints(self, [str(glob) for glob in globs]) if globs else None
        self.names: List[str] = []
        for item in request["outputs"]:
            self.names.append(str(item["name"]))
            tail = Tail(
                int(item["stream"]), layout.output_path(folder, str(item["name"])), int(item["offset"])
            )
            tail.partial = bool(item.get("partial"))
            tail.until = int(item["until"]) if "until" in item else None
            self.tails.append(tail)

    def begin(self) -> Dict[str, Any]:
        """Check the offsets, attach the outputs, and return the attempt's state."""
        state = attempt.read_state(self.folder)
        if state["state"] == "unknown":
            raise Refusal("run-lost", "there is no run named %s any more" % self.run)
        state["short"] = self._find_short(state["state"])
        self.connection.watch_path(self.folder)
        self.connection.watch_path(os.path.join(self.folder, layout.RANKS))
        for tail in self.tails:
            self.connection.add_source(tail)
        self.connection.watchers.append(self)
        self._note(state)
        return state

    def _find_short(self, state: str) -> Dict[str, int]:
        """Return the size of each output that has fewer bytes than the laptop holds: a power cut took the others.

        Only a run that is lost has such; an output that was cut while its run goes on or after its end is refused, but for
        a file of the script's own.
        """
        short = {}
        for name, tail in zip(self.names, self.tails):
            size = os.stat(tail.path).st_size if os.path.exists(tail.path) else 0
            if tail.offset < 0:
                raise ValueError("a negative offset")
            if tail.offset > size and name in layout.SCRIPTS_OWN:
                tail.partial = True  # it goes on if it grows beyond what was sent
                continue
            if tail.offset > size and state != "lost":
                words = "%s has %d bytes, and %d of it were sent: somebody has cut it"
                raise Refusal("verification-failed", words % (tail.path, size, tail.offset))
            if tail.offset > size:
                short[name] = tail.offset = size
        return short

    def has_ended(self) -> bool:
        """Tell cheaply whether the end was written and not noticed yet."""
        return self.over is None and os.path.exists(os.path.join(self.folder, layout.EXIT))

    def look(self) -> None:
        """Notice a change of state, the measured peak, and the end."""
        if self.over is not None:
            self._finish()
            return
        if not self.peak_sent:
            self._send_peak(read_record(os.path.join(self.folder, layout.PEAK)))
        state = attempt.read_state(self.folder)
        if _make_key(state) != self.last:
            facts = {key: state.get(key) for key in ("state", "phase", "supervised", "why", "queue")}
            if self.waited and facts["phase"] != "queued":  # only now it is known which GPUs it has
                facts["record"] = state.get("attempt")
            self.tell("state", **facts)
        self._note(state)
        self._watch_progress(state)
        if self.checkpoints is not None:
            self.checkpoints.look()
        self._finish()

    def _note(self, state: Dict[str, Any]) -> None:
        self.last = _make_key(state)
        self.waited = state.get("phase") == "queued"
        self._send_peak(state.get("peak"))
        if (
            state["state"] in (*life.FINAL, life.UNKNOWN) or not self.forever
        ):  # the last: its folder was removed
            self.over = state
            for tail in self.tails:
                tail.ended = True

    def _watch_progress(self, state: Dict[str, Any]) -> None:
        """Tell of a silence that is long, and of ranks that torchrun has started anew."""
        quiet = state.get("quiet") or 0.0
        if quiet < QUIET_SECONDS:
            self.quiet_limit = QUIET_SECONDS
        elif quiet >= self.quiet_limit and self.over is None:
            self.quiet_limit = 2 * quiet
            self.tell("quiet", seconds=quiet)
        if (state.get("attempt") or {}).get("plan", {}).get("max_restarts"):
            restarts = ends.count_restarts(self.folder)
            if restarts > self.restarts:
                self.tell("restarted", restarts=restarts)
            self.restarts = restarts

    def _send_peak(self, peak: Optional[Dict[str, Any]]) -> None:
        if peak is not None and not self.peak_sent:
            self.peak_sent = True
            self.tell("peak", peak=peak)

    def _finish(self) -> None:
        if all(tail.done for tail in self.tails) and self.over is not None:
            self.connection.watchers.remove(self)
            facts = {key: self.over.get(key) for key in ("state", "exit", "why")}
            self.tell("ended", **facts)

    def tell(self, kind: str, **facts: object) -> None:
        """Send an event of this attempt."""
        message: Dict[str, Any] = {"event": kind, "run": self.run, "attempt": self.number}
        message.update(facts)
        self.connection.send(message)


class Checkpoints:
    """Tells of checkpoints as they are committed; looking is done in a thread, output does not wait for it."""

    def __init__(self, follower: Follower, globs: List[str]) -> None:
        self._follower = follower
        self._globs = globs
        self._watching: Optional[Watching] = None
        self._looking = False

    def look(self) -> None:
        """Look, unless it is too early or the last look still goes on."""
        early = self._watching is not None and time.monotonic() < self._watching.due
        if not (self._looking or early or self._follower.over):
            self._looking = True
            self._follower.connection.run_aside(self._find_new, self._tell)

    def _find_new(self) -> List[Dict[str, Any]]:
        from remote_train.host.commits import Watching  # noqa: PLC0415  (half a second after the launch)

        self._watching = self._watching or Watching(self._follower.folder, self._globs)
        return self._watching.look()

    def _tell(self, events: List[Dict[str, Any]]) -> None:
        self._looking = False
        for event in events if self._follower.over is None else ():
            self._follower.tell("checkpoint", **event)


def _make_key(state: Dict[str, Any]) -> List[Any]:
    """Return what of a state is worth an event when it changes."""
    return [state["state"], state.get("phase"), state.get("supervised"), state.get("queue")]
