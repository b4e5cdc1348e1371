"""Follow a run from the offsets this laptop holds until its end, across any number of lost connections.

Nothing is kept in the connection: after a loss a new session asks for the same outputs at the offsets reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from remote_train.errors import ConnectionLost, ProtocolError, RemoteTrainError
from remote_train.host import layout
from remote_train.host.files import CHECKPOINTS
from remote_train.mirror import Mirror
from remote_train.reconnect import Losses, Patience, reconnect
from remote_train.session import Data, End, Event, Item, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Attempt, Run


def name_checkpoints(globs: Iterable[str]) -> tuple[str, ...]:
    """Return the globs that name a project's checkpoints: its own, else the usual names."""
    return tuple(globs) or CHECKPOINTS


OUTPUTS_ALWAYS = tuple(layout.OTHERS)
"""What is mirrored beside the ranks' outputs."""
QUIET_SECONDS = 0.1
"""Without anything new for so long, there is time for what can wait."""


class Aside(Protocol):
    """Work for when nothing comes, in short turns."""

    def is_waiting(self) -> bool:
        """Tell whether there is any."""

    def work(self) -> None:
        """Do a turn."""


@dataclass
class Wish:
    """What of an attempt is wanted."""

    run: Run
    attempt: int
    outputs: list[str]
    """Outputs to mirror: rank numbers, and names of layout.OTHERS."""
    shown: set[int]
    """Ranks whose bytes go to the listener."""
    until_end: bool = True
    give_up: float | None = None
    """Seconds without a connection after which to give up, None: never."""
    checkpoints: tuple[str, ...] = ()
    """Globs of checkpoints to be told of as they are committed."""


@dataclass
class Outcome:
    """How following ended."""

    state: str
    exit: dict[str, Any] | None
    why: str | None = None
    """Of a run that is lost: what is known of how that came."""


def read_end(mirror: Attempt) -> Outcome | None:
    """Return how an attempt ended when every byte of its output is here, else None: its host has to be asked."""
    ended = mirror.read(layout.EXIT)
    if ended is None:
        return None
    others = {name: size for name, size in ended.get("others", {}).items() if name in layout.OTHERS}
    sizes = {**ended.get("outputs", {}), **others}
    whole = all(_is_whole(name, mirror.offset(name), size) for name, size in sizes.items())
    return Outcome("ended", ended) if whole else None


def _is_whole(name: str, here: int, there: int) -> bool:
    return here == there or (name in layout.SCRIPTS_OWN and here > there)


class Following:
    """One attempt being followed."""

    def __init__(self, wish: Wish, link: HostLink, listener: Listener, *, writing: bool) -> None:
        self.wish = wish
        self.link = link
        self.listener = listener
        self.mirror = Mirror(wish.run.attempt(wish.attempt), wish.outputs, writing=writing)
        self.on_data: Callable[[str, bytes], None] | None = None
        self.on_record: Callable[[dict[str, Any]], object] = bool
        """Called with the host's record of the attempt, whenever it comes."""
        self.on_checkpoint: Callable[[], object] = int
        """Called when a checkpoint was committed."""
        self.on_session: Callable[[Session], object] = bool
        """Called with each new connection, once it is followed on."""
        self.aside: Aside | None = None
        self.shown_from: dict[str, int] = {}
        """Bytes before these are mirrored and not shown."""
        self.until: dict[str, int] = {}
        """Bytes to end at, where not the whole output is wanted."""
        self.streams: dict[int, str] = {}
        self.session: Session | None = None
        self.unfinished: set[str] = set()
        self.outcome: Outcome | None = None
        self._losses = Losses()

    def change_outputs(self, names: list[str]) -> None:
        """Follow other outputs than was thought, before anything has come."""
        self.wish.outputs = names
        for name in names:
            self.mirror.offsets.setdefault(name, self.mirror.attempt.offset(name))

    def make_request(self, session: Session) -> dict[str, Any]:
        """Return the follow request for a session, at the offsets reached."""
        self.session = session
        self.streams = {session.new_stream(): name for name in self.wish.outputs}
        self.unfinished = set(self.wish.outputs)
        outputs = [self._ask_for(stream, name) for stream, name in self.streams.items()]
        asked = {"checkpoints": list(self.wish.checkpoints)} if self.wish.checkpoints else {}
        return {
            "run": self.wish.run.id,
            "attempt": self.wish.attempt,
            "outputs": outputs,
            "wait": self.wish.until_end,
            **asked,
        }

    def _ask_for(self, stream: int, name: str) -> dict[str, Any]:
        item = {"stream": stream, "name": name, "offset": self.mirror.offsets[name]}
        partial = name in self.mirror.ahead or name in self.until
        item |= {"partial": True} if partial else {}
        return item | ({"until": self.until[name]} if name in self.until else {})

    def begin(self, session: Session) -> None:
        """Ask a session for everything from here on; one that cannot give it is closed."""
        try:
            state = session.request("follow", **self.make_request(session))
        except (RemoteTrainError, ConnectionLost):
            session.close()
            raise
        self._note_short(state.get("short"))
        self.note_state(state)
        self.on_session(session)

    def _note_short(self, short: object) -> None:
        """Tell what a host that went down has lost although it was sent before; the mirrors keep it."""
        for name, size in short.items() if isinstance(short, dict) else ():
            lost = self.mirror.keep_lost(str(name), size) if isinstance(size, int) else None
            if lost is not None:
                where = self.link.host.name
                hint = f"they are in {self.mirror.attempt.folder}"
                self.listener.tell("warn", text=f"{where} lost {lost} when it went down", hint=hint)

    def note_state(self, state: dict[str, Any]) -> None:
        """Keep the host's record of the attempt."""
        record = state.get("attempt")
        if record:
            self.mirror.keep(layout.ATTEMPT, record)
            self.on_record(record)
            if state.get("peak"):
                self.mirror.keep(layout.PEAK, state["peak"])
        self._tell_state(state)

    def _tell_state(self, facts: dict[str, Any]) -> None:
        said = {key: facts.get(key) for key in ("state", "phase", "supervised", "why", "queue")}
        self.listener.tell("state", run=self.wish.run.id, host=self.link.host.name, **said)

    def attach(self, session: Session | None = None) -> None:
        """Begin on this connection, or one of our own; one that breaks meanwhile is only a lost one."""
        try:
            self.begin(session or self.link.connect())
        except ConnectionLost as error:
            self.reconnect(error)

    def run(self) -> Outcome:
        """Take what comes until the attempt has ended and everything of it is here."""
        try:
            while self.outcome is None:
                try:
                    self._take_until_end()
                except ConnectionLost as error:
                    self.reconnect(error)
        except RemoteTrainError:
            self.close()
            raise
        else:
            return self.outcome
        finally:
            self.mirror.close()

    def close(self) -> None:
        """Let go of the connection."""
        if self.session is not None:
            self.session.close()

    def _take_until_end(self) -> None:
        if self.session is None:
            raise ConnectionLost("not connected")
        while self.outcome is None:
            aside = self.aside if self.aside is not None and self.aside.is_waiting() else None
            item = self.session.next_item(QUIET_SECONDS if aside is not None else 1.0)
            if item is not None:
                self._take(item)
            elif aside is not None:
                aside.work()

    def _take(self, item: Item) -> None:
        if isinstance(item, Event):
            self._take_event(item)
            return
        name = self.streams.get(item.stream)
        if name is None:
            return
        if isinstance(item, Data):
            self._losses.note_progress()
            hidden = self.shown_from.get(name, 0) - self.mirror.offsets[name]
            self.mirror.write(name, item.payload)
            self.tell_removed()
            if name.isdigit() and int(name) in self.wish.shown and hidden < len(item.payload):
                self.listener.output(int(name), item.payload[hidden:] if hidden > 0 else item.payload)
            if self.on_data is not None:
                self.on_data(name, item.payload)
        elif isinstance(item, End):
            self._take_end(name, item.summary)

    def tell_removed(self) -> None:
        """Say once that what was mirrored is gone from here."""
        if self.mirror.removed and not self.mirror.told:
            self.mirror.told = True
            run = self.wish.run
            name, place = run.id, self.mirror.attempt.folder
            if run.is_gone():
                name, place = f"{self.link.host.name}:{run.id}", run.folder
            text = f"records in {place} were removed: nothing of the output is kept from here on"
            self.listener.tell("warn", text=text, hint=f"`remote-train logs {name}` brings it anew")

    def _take_end(self, name: str, summary: dict[str, Any]) -> None:
        if self.mirror.offsets[name] != summary.get("length"):
            raise ProtocolError(
                f"{self.link.host.name}: {name} ended at byte {summary.get('length')}, "
                f"and {self.mirror.offsets[name]} have come"
            )
        if name not in self.until:
            self.mirror.verify(name, summary)
            self.tell_removed()
        self.unfinished.discard(name)

    def _take_event(self, event: Event) -> None:
        facts = event.facts
        if facts.get("run") != self.wish.run.id or facts.get("attempt") != self.wish.attempt:
            return
        if event.kind == "peak" and isinstance(facts.get("peak"), dict):
            self.mirror.keep(layout.PEAK, facts["peak"])
            self.listener.tell("peak", peak=facts["peak"])
        elif event.kind == "state":
            if isinstance(facts.get("record"), dict):  # it waited, and only now is known what it was given
                self.mirror.keep(layout.ATTEMPT, facts["record"])
                self.on_record(facts["record"])
            self._tell_state(facts)
        elif event.kind == "checkpoint":
            self.on_checkpoint()
        elif event.kind in ("quiet", "restarted"):
            self.listener.tell(event.kind, **{key: facts.get(key) for key in ("run", "seconds", "restarts")})
        elif event.kind == "ended":
            if self.unfinished:
                raise ProtocolError(f"{self.link.host.name}: the run ended and not all of its output came")
            ended = facts.get("exit")
            if isinstance(ended, dict):
                self.mirror.keep(layout.EXIT, ended)
            why = facts.get("why")
            exit_record = ended if isinstance(ended, dict) else None
            self.outcome = Outcome(str(facts.get("state")), exit_record, str(why) if why else None)

    def reconnect(self, loss: ConnectionLost) -> None:
        """Come back at the offsets reached."""
        self.close()
        patience = Patience(self.wish.run.id, self.wish.give_up, self.listener, self._losses)
        reconnect(self.link, loss, patience, self.begin)
