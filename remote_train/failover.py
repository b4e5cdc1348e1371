"""`--failover`: when the host of a followed run is lost or stays silent, the run goes on at the next one of its route.

It acts for as long as the process that follows lives. What it acts on is a run that is lost (the host was restarted, its
supervisor is gone) or a host without a connection for the time that was set; never a training that failed or was
stopped, never a refused key or login, never a start of which nobody knows whether it happened. The old attempt is
fenced before the next is started, and a thread goes on trying its host to stop what may still run there.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from remote_train.attempts import counts_no_more, is_superseded, newest_of
from remote_train.config.host_spec import LOCAL
from remote_train.errors import (
    ConnectionGivenUp,
    ConnectionLost,
    HostBusy,
    HostKeyRefused,
    HostUnfit,
    LoginRefused,
    RemoteTrainError,
    RunLost,
    Unreachable,
    UsageError,
)
from remote_train.fencing import list_pending
from remote_train.find import link_of, read_hosts_file
from remote_train.finish import make_superseded
from remote_train.reconnect import choose_pause, pause
from remote_train.restorable import NothingGained
from remote_train.resume import ResumeWish, resume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.api import Training
    from remote_train.launching import Started
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run

    Refusal = RemoteTrainError | ConnectionLost

SECONDS = 60.0
"""How long a host may be silent."""
DECIDED = (HostKeyRefused, LoginRefused, UsageError)
"""A host that refuses us, or a wrong configuration, leads to no other host: a person has to look."""
MOST_DOUBLINGS = 4
"""A host on which a copy may run for nothing is tried again within 16 s."""
ASK_SECONDS = 1.0
"""Between two looks whether a copy that was told to stop has ended."""
HEARD_SECONDS = 2.0


class _Silence:
    """How long the host of the followed run has been silent, over several tries to go on."""

    def __init__(self) -> None:
        self._since: float | None = None

    def note(self, error: RemoteTrainError, began: float) -> None:
        """Take notice of a following, begun at `began`, that ended like this."""
        silence = error.facts.get("silence")
        now = time.monotonic()
        if not isinstance(silence, float):
            self._since = None
        elif self._since is None or now - began - silence > HEARD_SECONDS:  # it was heard in between
            self._since = now - silence

    def is_longer(self, seconds: float | None) -> bool:
        """Tell whether it is over a limit; None: there is none."""
        return seconds is not None and self._since is not None and time.monotonic() - self._since >= seconds


@dataclass
class Failover:
    """Stay with a run over as many hosts as it takes."""

    training: Training
    """The run that is followed; its link leads to where it is now."""
    listener: Listener
    seconds: float = SECONDS
    give_up: float | None = None
    """Seconds without any connection after which to leave the run alone, where no other host takes it; None: never."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values of the run's secrets: when it goes on nobody is asked."""
    _silence: _Silence = field(default_factory=_Silence)
    _chasers: list[threading.Thread] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.listener = _Shared(self.listener)

    def follow(self, **wishes: Any) -> None:  # noqa: ANN401  (Training.follow's)
        """Stay with the run to its end, as Training.follow does, wherever it goes on."""
        self._chase()
        try:
            self._follow(wishes)
        except RemoteTrainError:
            self._tell_pending()
            raise
        self._tell_pending()

    def _tell_pending(self) -> None:
        """Tell, at the end, of copies that were not heard of so far."""
        run = self.training.run
        for number, host in list_pending(run) if not run.is_gone() else ():
            text = f"attempt {number} may still run on {host}: the next command that reaches {host} stops it"
            self.listener.tell("warn", text=text)

    def _follow(self, wishes: dict[str, Any]) -> None:
        while True:
            held = _HeldEnd(self.listener)
            began = time.monotonic()
            number = self.training.attempt
            try:
                self.training.follow(held, give_up=self.seconds, **wishes)
            except (ConnectionGivenUp, RunLost) as error:
                self._silence.note(error, began)
                on = may_go_on(error, self.training.run, number) and self._go_on(error)
                if not on and counts_no_more(self.training.run, number):  # another process was first
                    raise make_superseded(self.training.id, self.training.run.read(), number) from error
                if not on and (not is_silent(error) or self._silence.is_longer(self.give_up)):
                    held.pass_on()
                    raise
            else:
                return

    def _go_on(self, error: RemoteTrainError) -> bool:
        """Start the next attempt somewhere; False when no host takes it: the old one is waited for, if it may be alive."""
        run = self.training.run
        lost = not is_silent(error)
        reason = _render_reason(error, self.training.link.host.name)
        before = newest_of(run.read())
        route = choose_route(run.read(), lost=lost)
        self.listener.tell("failover", run=run.id, attempt=self.training.attempt, reason=reason, hosts=route)
        wish = ResumeWish(
            give_up=self.seconds,
            reason=reason,
            lost=True,
            anew=lost,
            known=self.secrets,
            on_busy=self._on_busy(),
        )
        refusal = self._try_route(route, wish, before)
        if isinstance(refusal, HostKeyRefused):  # someone may be between us and it: nobody goes on by habit
            raise refusal
        if isinstance(refusal, NothingGained):
            self._say_stay(refusal)
        elif refusal is not None:
            self._say_nowhere(lost=lost)
        return refusal is None

    def _on_busy(self) -> str:
        """Return what is to be done on a host whose GPUs are in use: there may be others."""
        kept = (self.training.run.read().get("job") or {}).get("on_busy")
        return "share" if kept == "share" else "fail"

    def _try_route(self, route: list[str], wish: ResumeWish, before: int) -> Refusal | None:
        """Try hosts in order, and wait for the first that is busy when none is free; return the last refusal, None for none.

        A busy host can be reached: it is waited for rather than fallen back from.
        """
        patient = (self.training.run.read().get("job") or {}).get("on_busy", "queue") == "queue"
        last: Refusal | None = Unreachable("there is no other host")
        busy: list[str] = []
        for name in route:
            if name == LOCAL and busy:
                continue
            local = name == LOCAL
            last = self._try(replace(wish, host=None if local else name, local=local), before)
            if last is None or isinstance(last, (NothingGained, *DECIDED)):
                return last
            busy += [name] if isinstance(last, HostBusy) else []
        return self._try(replace(wish, host=busy[0], on_busy="queue"), before) if busy and patient else last

    def _try(self, wish: ResumeWish, before: int) -> Refusal | None:
        """Start the next attempt on one host; return what stood in the way, None when it is started."""
        try:
            started = resume(self.training.run, wish, self.listener, None)
        except (RemoteTrainError, ConnectionLost) as refusal:
            if (
                newest_of(self.training.run.read()) != before
            ):  # it may have been started: nobody may start another
                raise
            if not isinstance(refusal, NothingGained):
                self.listener.tell("passed_over", reason=str(refusal))
            return refusal
        self._move(started)
        return None

    def _move(self, started: Started) -> None:
        """Follow the attempt that was started."""
        self.training.link, self.training.started = started.prepared.reached.link, started
        self.training.again = False
        self._chase()

    def _say_stay(self, why: NothingGained) -> None:
        """Tell, once, why the run is left where it is."""
        if why.message not in self._said:
            self.listener.tell("warn", text=why.message, hint=why.hint)
        self._said.add(why.message)
        self.training.again = True

    def _say_nowhere(self, *, lost: bool) -> None:
        run = self.training.run
        what = "it is lost" if lost else f"{self.training.link.host.name} is waited for"
        self.listener.tell(
            "warn",
            text=f"no other host takes {run.id} now: {what}",
            hint=f"`remote-train resume {run.id} --host NAME` goes on elsewhere",
        )
        self.training.again = True

    def _chase(self) -> None:
        """Have every old copy stopped as soon as its host is heard."""
        run = self.training.run
        for number, host in list_pending(run):
            name = f"fence {host} {number}"
            if any(thread.name == name and thread.is_alive() for thread in self._chasers):
                continue
            try:
                link = link_of(run, read_hosts_file(run), None, number)
            except UsageError as error:  # its name means nothing any more; that it may run is told at the end
                if str(error) not in self._said:
                    self.listener.tell("warn", text=f"attempt {number} cannot be stopped: {error.message}")
                self._said.add(str(error))
                continue
            chaser = threading.Thread(
                target=chase, args=(run, number, link, self.listener), name=name, daemon=True
            )
            chaser.start()
            self._chasers.append(chaser)


def is_silent(error: RemoteTrainError) -> bool:
    """Tell whether a host was not heard for the time that was set: the run may go on there all the same."""
    return isinstance(error, ConnectionGivenUp) and "silence" in error.facts


def may_go_on(error: RemoteTrainError, run: Run, number: int) -> bool:
    """Tell whether a run whose attempt ended like this for who followed it is to go on elsewhere.

    Not when our own program on the host dies again and again, and not when meanwhile somebody knows of an end, has the
    run go on in another attempt, or does not know whether one was started.
    """
    if run.is_gone() or not (is_silent(error) or isinstance(error, RunLost)):
        return False
    record = run.read()
    if is_silent(error) and record["state"] == "unknown":
        return False
    return record["state"] not in ("ended", "not started") and not is_superseded(record, number)


def choose_route(record: dict[str, Any], *, lost: bool) -> list[str]:
    """Return where to go on, in order: the hosts asked for behind this one, then those before it, then this machine.

    The host itself comes last of the hosts, if it is its run that was lost: who is silent cannot start anything.
    """
    job = record.get("job") or {}
    hosts = [name for name in job.get("hosts") or [] if name != LOCAL]
    here = record["host"]
    at = hosts.index(here) if here in hosts else len(hosts)
    route = hosts[at + 1 :] + hosts[:at]
    if lost and here != LOCAL:
        route.append(here)
    if (job.get("fallback") and here != LOCAL) or (lost and here == LOCAL):
        route.append(LOCAL)
    return route


def _render_reason(error: RemoteTrainError, host: str) -> str:
    silence = error.facts.get("silence")
    if isinstance(silence, float):
        return f"{host} was silent for {silence:.0f} s"
    return f"{error.facts.get('why') or 'the run was gone'} ({host})"


def chase(run: Run, number: int, link: HostLink, listener: Listener) -> None:
    """Stop what may still run of an attempt that counts no more, as soon as its host is heard; nobody is asked anything.

    A host that refuses us is left to the next command.
    """
    link = link.unasked()
    failures = 0
    while is_fenced(run, number):
        try:
            link.connect().close()
        except (Unreachable, ConnectionLost, HostUnfit):
            pause(choose_pause(failures, random.random()))  # noqa: S311  (jitter, not a secret)
            failures = min(failures + 1, MOST_DOUBLINGS)
        except (RemoteTrainError, OSError):
            return
        else:
            pause(ASK_SECONDS)
    listener.tell("superseded", run=run.id, attempt=number, host=link.host.name)


def is_fenced(run: Run, number: int) -> bool:
    """Tell whether an attempt is still to be stopped."""
    return not run.is_gone() and number in [old for old, _ in list_pending(run)]


class _Shared:
    """A listener that is told by several threads, one at a time."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._alone = threading.Lock()

    def output(self, rank: int, data: bytes) -> None:
        with self._alone:
            self._listener.output(rank, data)

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (facts differ by kind)
        with self._alone:
            self._listener.tell(kind, **facts)


class _HeldEnd:
    """Pass everything on but the end of a run, which may be none if it goes on elsewhere."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._end: dict[str, Any] | None = None

    def output(self, rank: int, data: bytes) -> None:
        self._listener.output(rank, data)

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (facts differ by kind)
        if kind == "ended" and isinstance(facts.get("verdict"), RunLost):
            self._end = facts
            return
        self._listener.tell(kind, **facts)

    def pass_on(self) -> None:
        """Tell of the end after all."""
        if self._end is not None:
            self._listener.tell("ended", **self._end)
