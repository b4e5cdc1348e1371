"""The Python API, and what the command line calls: `launch(...)` gives a `Training`, which can be followed and stopped.

import remote_train
training = remote_train.launch("train.py", "--steps=100", host="4070ti")
code = training.wait()
for record in training.metrics():
    print(record.step, record.loss, record.mfu)
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote_train.along import choose_checkpoints, pull_along, pull_now
from remote_train.attach import Attached, attach_to_end, follow_again, wait_again
from remote_train.attempts import (
    OVER,
    Hop,
    counts_no_more,
    is_superseded,
    item_of,
    list_hops,
    newest_of,
    update_newest,
)
from remote_train.errors import ConnectionGivenUp, ConnectionLost, LocalSpace, RemoteTrainError
from remote_train.find import find
from remote_train.finish import finish_run
from remote_train.follow import OUTPUTS_ALWAYS, Following, Outcome, Wish, read_end
from remote_train.host.files import tail_offset
from remote_train.launching import Started, start
from remote_train.listener import Listener, Silent
from remote_train.outcome import make_verdict
from remote_train.preparing import Request
from remote_train.pruned import is_away
from remote_train.pull import Pulled, PullWish
from remote_train.query import describe, keep_state, refresh
from remote_train.resume import ResumeWish, resume
from remote_train.retention import drop_leftovers
from remote_train.stop import stop_across_losses
from remote_train.tail import bring_head, complete_mirror, find_tail, show_held
from remote_train.watch import read_curve, read_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from remote_train.metrics.record import MetricRecord
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.transport import Ask


@dataclass
class Training:
    """One run, wherever it is: its record on this laptop and a way to its host."""

    run: Run
    link: HostLink
    started: Started | None = None
    """The connection that started it, until it is used."""
    number: int | None = None
    """The attempt that is meant, and whose host `link` leads to; None: the newest, whichever that is."""
    again: bool = False
    """Its host was given up a moment ago: what is mirrored was shown, and the host is waited for from the first try on."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.run.id

    @property
    def attempt(self) -> int:
        """The number of the attempt that is meant, by default the newest."""
        return self.number or newest_of(self.run.read())

    @property
    def processes(self) -> int:
        """How many processes this attempt has."""
        return int(item_of(self.run.read(), self.attempt)["plan"]["processes"])

    def follow(
        self,
        listener: Listener,
        *,
        shown: set[int],
        tail: int | None = None,
        give_up: float | None = None,
        pull: bool = True,
    ) -> None:
        """Stay with the run to its end; raises what the end amounts to (errors.py) unless it is success.

        `shown` are the ranks whose output goes to the listener, from the beginning or the last `tail` lines.
        """
        if self.run.read().get("pruned") and self.is_complete():
            self._show_pruned(listener, shown, tail)
            return
        cleaning = self.started.cleaning if self.started is not None else None
        ended_before = self.is_over()
        with contextlib.ExitStack() as held:
            writing = held.enter_context(self._writing())
            pull = pull and not ended_before
            wish = self._wish(shown, give_up)
            wish.checkpoints = choose_checkpoints(self.run, self.attempt) if pull else ()
            attached = self._attach(listener, wish, tail, writing=writing)
            if pull and attached.wish.checkpoints:
                attached.bring_checkpoints()
            outcome = attached.run()
            if cleaning is not None:
                cleaning.tell_trouble(listener)
            if not counts_no_more(self.run, attached.wish.attempt):
                self._complete(attached, listener, held)
            elif self.number is not None:
                attached.following.close()
                return  # looked at for the record: its end is not the run's
            finish_run(attached, outcome, pull=pull)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[bool]:
        """Hold the mirror's lock if it is free, and clear what killed processes left in the records."""
        with self.run.writing() as writing:
            if writing:
                drop_leftovers(self.run.folder)
                with contextlib.suppress(OSError):  # a disk that takes nothing
                    self.run.attempt(self.attempt).prepare()  # somebody may have removed it
            yield writing

    def _show_pruned(self, listener: Listener, shown: set[int], tail: int | None) -> None:
        """Show what is here of a run that its host has removed, and raise what its end amounts to."""
        self.show_mirror(listener, shown, tail)
        record = self.run.read()
        verdict = make_verdict(self.run.id, record["host"], Outcome(record["state"], record.get("exit")))
        if verdict is not None:
            raise verdict

    def _attach(self, listener: Listener, wish: Wish, tail: int | None, *, writing: bool) -> Attached:
        shown = wish.shown
        if self.started is not None:
            started, self.started = self.started, None
            started.following.listener = listener
            started.following.mirror.writing = writing
            started.following.wish.shown = shown
            attached = Attached(started.following, listener)
            attached.keeping = started.keeping
            attached.watch_from(started.state.get("attempt"), started.state.get("peak"))
            listener.tell("following", log=self._log(shown))
            return attached
        following = Following(wish, self.link, listener, writing=writing)
        if self.again:
            return wait_again(following, listener)
        ended = self._read_end()
        if ended is not None:
            self.show_mirror(listener, shown, tail)
            return attach_to_end(following, listener, ended)
        if tail is None:
            # Another process may write the mirror meanwhile: what is shown ends where the following begins.
            self.show_mirror(listener, shown, None, following.mirror.offsets)
        session = None
        if tail is not None:
            session = self.link.connect()
            find_tail(following, session, tail)
            session = bring_head(following, session)
        attached = follow_again(following, listener, session)
        if tail is not None:
            show_held(following)
        listener.tell("following", log=self._log(shown))
        return attached

    def _complete(self, attached: Attached, listener: Listener, held: contextlib.ExitStack) -> None:
        """Bring what the following left out, now that it holds up nothing.

        So does who has only watched while another process wrote the mirror, if that one was killed over it.
        """
        mirror = attached.following.mirror
        if self.run.is_gone():
            return
        if not mirror.writing:
            if not held.enter_context(self._writing()) or self._read_end() is not None:
                return
            mirror.writing = True
        elif not mirror.ahead:
            return
        hint = f"Ctrl-C leaves that to `remote-train logs {self.id}`"
        listener.tell("note", text=f"bringing the rest of the log, so that all of it is here; {hint}")
        try:
            complete_mirror(attached.following, self._wish(set(), None).outputs)
        except (ConnectionGivenUp, ConnectionLost) as error:
            hint = f"`remote-train logs {self.id}` brings it"
            listener.tell("warn", text=f"the log here is not complete: {error}", hint=hint)

    def _log(self, shown: set[int]) -> Path:
        """Return where what is shown lies: a file, or the folder of several."""
        path = self.run.attempt(self.attempt).output(str(min(shown, default=0)))
        return path if len(shown) == 1 else path.parent

    def _wish(self, shown: set[int], give_up: float | None, *, until_end: bool = True) -> Wish:
        outputs = [*map(str, range(self.processes)), *OUTPUTS_ALWAYS]
        return Wish(self.run, self.attempt, outputs, shown, until_end=until_end, give_up=give_up)

    def show_mirror(
        self, listener: Listener, shown: set[int], tail: int | None, ends: Mapping[str, int] | None = None
    ) -> None:
        """Give the listener what is mirrored of these ranks: all or the last `tail` lines, up to the byte in `ends`."""
        for rank in sorted(shown):
            path = self.run.attempt(self.attempt).output(str(rank))
            begin = tail_offset(str(path), tail) if tail is not None else 0
            end = ends[str(rank)] if ends is not None else None
            for piece in read_pieces(path, begin, end):
                listener.output(rank, piece)

    def catch_up(self) -> None:
        """Bring the mirror up to what the host has now; does not wait for the end."""
        with self._writing() as writing:
            if not writing:
                return
            wish = self._wish(set(), 0.0, until_end=False)
            following = Following(wish, self.link, Silent(), writing=True)
            following.attach()
            self._run_to_now(following)

    def show_now(self, listener: Listener, shown: set[int], tail: int | None) -> str | None:
        """Give the listener the output as its host has it now, or as it was last seen; return why it is that.

        It comes as it is mirrored. A mirror that is far behind is not completed for the last `tail` lines.
        """
        with self._writing() as writing:
            wish = self._wish(shown, 0.0, until_end=False)
            following = Following(wish, self.link, listener, writing=writing)
            try:
                session = self.link.connect()
                if tail is not None:
                    find_tail(following, session, tail)
                following.begin(session)
            except (RemoteTrainError, ConnectionLost) as error:
                self.show_mirror(listener, shown, tail)
                return str(error)
            show_held(following)
            self._run_to_now(following)
        return None

    def _run_to_now(self, following: Following) -> None:
        """Mirror what the host has now, and keep an end that is told."""
        outcome = following.run()
        following.close()
        trouble = following.mirror.make_failure(self.id)
        if trouble is not None:
            raise trouble
        if outcome.state in OVER:
            update_newest(self.run, self.attempt, state=outcome.state, exit=outcome.exit, why=outcome.why)

    def _read_end(self) -> Outcome | None:
        return read_end(self.run.attempt(self.attempt))

    def is_over(self) -> bool:
        """Tell whether this attempt has ended, for all that is known here; what counts no more is left to its fence."""
        record = self.run.read()
        return record["state"] in OVER or is_superseded(record, self.attempt)

    def is_complete(self) -> bool:
        """Tell whether the attempt is over and all there is of its output is here."""
        record = self.run.read()
        unstarted = record["state"] == "not started" and self.attempt == newest_of(record)
        return unstarted or self._read_end() is not None or is_away(self.run, self.link)

    def logs(self, rank: int = 0) -> Iterator[bytes]:
        """Yield a rank's output so far."""
        if not self.is_complete():
            self.catch_up()
        yield from read_pieces(self.run.attempt(self.attempt).output(str(rank)))

    def metrics(self, *, all_attempts: bool = False) -> Iterator[MetricRecord]:
        """Yield the metric records of what has been mirrored so far, of all attempts as one curve.

        What an attempt did beyond the step from which the next went on is left out, with `all_attempts` it is marked.
        """
        return read_curve(self.run, everything=all_attempts)

    def hops(self) -> list[Hop]:
        """Return where the run went on in another attempt, oldest first."""
        return list_hops(self.run.read())

    def state(self) -> dict[str, Any]:
        """Ask the host how the run is."""
        return refresh(self.run, self.link) if self.number is None else self.run.read()

    def describe(self) -> dict[str, Any]:
        """Return what `show` says, from the records here."""
        return describe(self.run)

    def pull(self, wish: PullWish | None = None, listener: Listener | None = None) -> Pulled:
        """Bring files of the run home; by default its checkpoints."""
        return pull_now(self.run, self.attempt, self.link, wish or PullWish(), listener or Silent())

    def pull_along(self, wish: PullWish | None = None, listener: Listener | None = None) -> Pulled:
        """Bring checkpoints home as they are committed until the run has ended, then all that is wished for."""
        return pull_along(self.run, self.attempt, self.link, wish or PullWish(), listener or Silent())

    def stop(self, grace: float = 30.0, listener: Listener | None = None) -> dict[str, Any]:
        """Stop the run and return its last state; raises StopIncomplete naming processes that are still there."""
        if is_away(self.run, self.link):
            return self.run.read()  # nothing was left of it when it was removed
        state = stop_across_losses(self.run, self.attempt, self.link, grace, listener or Silent())
        try:
            return keep_state(self.run, state)
        except LocalSpace as error:  # it is stopped all the same, and its host knows it
            (listener or Silent()).tell("warn", text=error.message, hint=error.hint)
            return {**self.run.read(), "state": state["state"], "exit": state.get("exit")}

    def resume(self, host: str | None = None, listener: Listener | None = None, **options: Any) -> Training:  # noqa: ANN401
        """Start the run's next attempt from its newest checkpoint; `options` are the fields of `ResumeWish` (local, args, …)."""
        wish = ResumeWish(host=host, **options)
        return training_of(resume(self.run, wish, listener or Silent(), None))

    def wait(self, listener: Listener | None = None) -> int:
        """Follow the run silently to its end and return the exit code `remote-train run` would end with."""
        try:
            self.follow(listener or Silent(), shown=set())
        except RemoteTrainError as error:
            return error.exit_code
        return 0


def training_of(started: Started) -> Training:
    """Return the training that `launch.start` has just started."""
    return Training(started.run, started.prepared.reached.link, started)


def launch(script: str | None = None, *args: str, host: str | None = None, **options: Any) -> Training:  # noqa: ANN401
    """Start a run and return it; `options` are the fields of `Request` (local, fallback, name, env, …)."""
    hosts = (host,) if host else ()
    known = {field.name for field in dataclasses.fields(Request)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"launch() has no option {', '.join(unknown)}; it knows {', '.join(sorted(known))}")
    return training_of(start(Request(script=script, args=args, hosts=hosts, **options), Silent(), None))


def find_training(
    text: str | None = None,
    hosts_file: Path | None = None,
    ask: Ask | None = None,
    attempt: int | None = None,
) -> Training:
    """Return a run by id, unique prefix, HOST:ID, or (None) this project's latest; an older `attempt` of it, if given."""
    run, link = find(text, hosts_file, ask, attempt)
    return Training(run, link, number=attempt)
