"""What follows a launch once it is under way: old runs of its project leave the host, dead records this laptop.

Nobody may have stayed with a run that was started with `-d`, or whose laptop died: that it ended is learnt here, and
what it said is brought if it is small, so that it can leave too once its checkpoints are pulled.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from remote_train.attempts import OVER, item_of, keep_standing, newest_of, place_of, places_of
from remote_train.errors import ConnectionLost, ProtocolError, RemoteTrainError
from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish
from remote_train.host import layout, life
from remote_train.kept_package import drop_packages
from remote_train.listener import Silent
from remote_train.package.manifest import render_size
from remote_train.query import keep_state, name_newest
from remote_train.records import client_root, list_runs
from remote_train.retention import (
    Offer,
    drop_leftovers,
    forget_missing,
    forget_unstarted,
    is_worth_asking,
    make_requests,
    make_wish,
    offer_runs,
    pick_old,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.attempts import Place
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.session import Session

MUCH_BYTES = 20_000_000_000
"""What a host may keep of us before it is said."""

AT_ONCE = 20
"""Runs that one launch asks for."""
LOOKED_AT = 100
"""Runs whose end one launch would learn of."""
BRING_BYTES = 50_000_000
"""Output that one launch brings of old runs, all together."""
WAIT_SECONDS = 1.0
"""How long a detached launch stays for the host to hear what it may remove."""
BRING_SECONDS = 3.0
"""How much longer when output is being brought; the next launch goes on with what is left."""

Row = dict[str, Any]


class Cleaning:
    """The cleaning that one launch has behind it, on a thread that nothing waits for."""

    def __init__(self, run: Run, session: Session, link: HostLink) -> None:
        self._launched = run
        self._session = session
        self._place = (link.host.name, link.host.state_dir)
        # Nobody is asked for a password or about a host key behind a run that is under way.
        self._link = link.unasked()
        self._left = BRING_BYTES
        self._bringing = False
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="cleaning", daemon=True)
        self._thread.start()

    def wait(self, listener: Listener) -> None:
        """Wait for it, not long, and tell its trouble."""
        self._thread.join(WAIT_SECONDS)
        if self._bringing:
            self._thread.join(BRING_SECONDS)
        self.tell_trouble(listener)

    def tell_trouble(self, listener: Listener) -> None:
        """Tell, once, that the host said nonsense: nothing was cleaned, and that is all the harm."""
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            listener.tell("warn", text=f"old runs were not cleaned up: {trouble}")

    def _run(self) -> None:
        """Do it; a lost connection, or a disk that is full here, only puts it off to the next launch."""
        try:
            self._work()
        except ProtocolError as error:
            self._trouble = error.message
        except (ConnectionLost, RemoteTrainError, OSError):
            return

    def _work(self) -> None:
        runs = list_runs(self._launched.folder.parent.parent)
        forget_unstarted(runs)
        forget_missing()
        drop_leftovers(client_root(), "*", "*/*")
        self._learn_ends([run for run in runs if self._is_open(run)][:LOOKED_AT])
        now = time.time()
        old = pick_old(runs, *self._place)
        asked = [run for run in old if is_worth_asking(run, self._place, now) and not run.in_use()][:AT_ONCE]
        behind = choose_behind(asked, self._place, self._offer(asked))
        if behind:
            self._bringing = True
            self._offer(self._bring(behind))
        drop_packages()

    def _offer(self, runs: Sequence[Run]) -> list[Row]:
        """Have the host take away what it may; with no run at all it may still be time for it to tidy."""
        wishes = make_requests(make_wish(run, self._place) for run in runs)[0]
        return offer_runs(self._session, Offer(self._place, wishes, runs))[0]

    def _is_open(self, run: Run) -> bool:
        """Tell whether a run is one of ours on this host, not known to be over."""
        record = run.read()
        here = place_of(record, newest_of(record)) == self._place
        if not here or run.id == self._launched.id or record.get("state") in OVER:
            return False
        return read_token(run) is not None

    def _learn_ends(self, runs: Sequence[Run]) -> None:
        asked = [(run, self._session.submit("state", **name_newest(run))) for run in runs]
        for run, number in asked:
            try:
                state = self._session.wait(number)
            except RemoteTrainError:  # of this one; a connection that is lost is none of these
                continue
            ours = (state.get("attempt") or {}).get("token") == read_token(run)
            # Not asked of a run that goes on: to look at its lock might keep it from who is about to follow it.
            if ours and state["state"] in life.FINAL and not run.in_use():
                keep_state(run, state)

    def _bring(self, runs: Sequence[Run]) -> list[Run]:
        """Complete mirrors, over a connection of our own; return the runs whose mirror it was given to us to write."""
        brought = []
        session = self._link.connect()
        try:
            for run in runs:
                with run.writing() as writing:
                    if writing:
                        session = self._bring_one(run, session)
                        brought.append(run)
        finally:
            session.close()
        return brought

    def _bring_one(self, run: Run, session: Session) -> Session:
        """Complete one run's mirror; return the session to go on with."""
        record = run.read()
        for number in places_of(record).get(self._place, []):
            ranks = map(str, range(int(item_of(record, number)["plan"]["processes"])))
            wish = Wish(run, number, [*ranks, *OUTPUTS_ALWAYS], set(), until_end=False, give_up=0.0)
            following = Following(wish, self._link, Silent(), writing=True)
            following.on_data = self._take
            following.attach(session)
            following.run()
            session = following.session or session
            trouble = following.mirror.make_failure(run.id)
            if trouble is not None:
                raise trouble
        return session

    def _take(self, _name: str, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise RemoteTrainError("that is enough for one launch")


def read_token(run: Run) -> str | None:
    """Return what the newest attempt was started with, as its host told us then."""
    mirror = run.attempt(newest_of(run.read()))
    token = (mirror.read(layout.ATTEMPT) or {}).get("token")
    return token if isinstance(token, str) else None


def choose_behind(asked: Sequence[Run], place: Place, results: Sequence[Row]) -> list[Run]:
    """Return the runs that stay only because of output that is not here and is small, and forget that they stay."""
    named = {result["run"] for result in results if result["kind"] == "output"}
    left = BRING_BYTES
    behind = []
    for missing, run in sorted(
        ((count_missing(run, place), run) for run in asked if run.id in named), key=_first
    ):
        left -= missing
        if left >= 0:
            keep_standing(run, place, stays=None)  # should it not come now, the next launch tries again
            behind.append(run)
    return behind


def _first(pair: tuple[int, Run]) -> int:
    return pair[0]


def count_missing(run: Run, place: Place) -> int:
    """Return the bytes of output that are not here yet of a run that ended; of one that is lost nobody has said it."""
    missing = 0
    for number in places_of(run.read()).get(place, []):
        mirror = run.attempt(number)
        ended = mirror.read(layout.EXIT) or {}
        missing += sum(max(0, size - mirror.offset(name)) for name, size in ended.get("outputs", {}).items())
    return missing


def tell_usage(usage: object, host: str, listener: Listener) -> None:
    """Say what we keep on a host, when that is much, data that was sent on purpose aside."""
    known = usage if isinstance(usage, dict) else {}
    kinds = known.get("kinds")
    sizes = (known.get("total"), kinds.get(layout.DATA, 0) if isinstance(kinds, dict) else 0)
    total, data = (size if isinstance(size, int) else 0 for size in sizes)
    if total - data > MUCH_BYTES:
        text = f"remote-train keeps {render_size(total)} on {host}; `remote-train gc` frees some"
        listener.tell("note", text=text)
