"""Follow one attempt for a laptop: its outputs, its clock, its changes of state, and its end."""

from __future__ import annotations

import os

from remote_train.host import attempt, layout
from remote_train.host.durable import read_record
from remote_train.host.sources import Tail
from remote_train.host.start import Refusal

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from remote_train.host.agent import Connection


class Follower:
    """One `follow` request."""

    def __init__(self, connection: Connection, folder: str, request: Dict[str, Any]) -> None:
        self.connection = connection
        self.folder = folder
        self.run = request["run"]
        self.number = request["attempt"]
        self.forever = bool(request.get("wait", True))
        self.tails: List[Tail] = []
        self.last: Optional[str] = None
        self.peak_sent = False
        self.over: Optional[Dict[str, Any]] = None
        for item in request["outputs"]:
            tail = Tail(int(item["stream"]), self._path(item["name"]), int(item["offset"]))
            tail.partial = bool(item.get("partial"))
            tail.until = int(item["until"]) if "until" in item else None
            self.tails.append(tail)

    def _path(self, name: str) -> str:
        if name == "clock":
            return os.path.join(self.folder, layout.CLOCK)
        if name == "launcher":
            return os.path.join(self.folder, layout.LAUNCHER_LOG)
        return layout.rank_log(self.folder, int(name))

    def begin(self) -> Dict[str, Any]:
        """Check the offsets, attach the outputs, and return the attempt's state."""
        for tail in self.tails:
            size = os.stat(tail.path).st_size if os.path.exists(tail.path) else 0
            if not 0 <= tail.offset <= size:
                raise ValueError("offset %d of %s: it has %d bytes" % (tail.offset, tail.path, size))
        state = attempt.read_state(self.folder)
        if state["state"] == "unknown":
            raise Refusal("run-lost", "there is no run named %s any more" % self.run)
        self.connection.watch_path(self.folder)
        self.connection.watch_path(os.path.join(self.folder, layout.RANKS))
        for tail in self.tails:
            self.connection.add_source(tail)
        self.connection.watchers.append(self)
        self._note(state)
        return state

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
        if state["state"] != self.last:
            self._event("state", state=state["state"])
        self._note(state)
        self._finish()

    def _note(self, state: Dict[str, Any]) -> None:
        self.last = state["state"]
        self._send_peak(state.get("peak"))
        if state["state"] in ("ended", "lost") or not self.forever:
            self.over = state
            for tail in self.tails:
                tail.ended = True

    def _send_peak(self, peak: Optional[Dict[str, Any]]) -> None:
        if peak is not None and not self.peak_sent:
            self.peak_sent = True
            self._event("peak", peak=peak)

    def _finish(self) -> None:
        if all(tail.done for tail in self.tails) and self.over is not None:
            self.connection.watchers.remove(self)
            self._event("ended", state=self.over["state"], exit=self.over.get("exit"))

    def _event(self, kind: str, **facts: object) -> None:
        message: Dict[str, Any] = {"event": kind, "run": self.run, "attempt": self.number}
        message.update(facts)
        self.connection.send(message)
