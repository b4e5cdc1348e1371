"""`resume`, from top to bottom: how is it, where to, from which checkpoint, with which package; then the next attempt.

The attempt is recorded before it is started and follows `run` from there on (`launching.begin`). One command at a time
resumes a run on a laptop; on the host the attempt's number and token see to it (`host/order.py`).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempt_list import append_attempt, retract_attempt
from remote_train.attempts import OVER, are_left, newest_of
from remote_train.consent import recall_environment
from remote_train.errors import (
    ConnectionLost,
    HostUnfit,
    Unreachable,
    UsageError,
)
from remote_train.fencing import lift
from remote_train.find import link_of, make_link, read_hosts_file, script_of
from remote_train.fitness import describe_reached
from remote_train.flocks import open_lock, try_lock
from remote_train.jobs import keep_unrecorded, make_entry, parse_job
from remote_train.kept_package import recall_package
from remote_train.launching import NOTHING, begin
from remote_train.leaving import Leaving
from remote_train.plan import make_plan
from remote_train.preparing import Prepared, Request, hear, paths_of
from remote_train.preparing_from import recall_data_of
from remote_train.query import keep_state
from remote_train.reach import Reached
from remote_train.records import RESUME_LOCK
from remote_train.restorable import (
    check_progress,
    choose_newest,
    find_step,
    list_beside,
    list_here,
    list_there,
    refuse_anew,
)
from remote_train.room import check_space
from remote_train.stop import DONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from remote_train.launching import Started
    from remote_train.listener import Listener
    from remote_train.plan import Job
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.restorable import Checkpoint
    from remote_train.session import Session
    from remote_train.transport import Ask


NAMED = 5
"""Files that a warning names."""


@dataclass(frozen=True)
class ResumeWish:
    """Where and how a run is to go on."""

    host: str | None = None
    """None: where its last attempt was."""
    local: bool = False
    args: tuple[str, ...] = ()
    """More arguments of the script."""
    secrets: tuple[str, ...] = ()
    known: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values of its secrets that this process has already: they are not asked for again."""
    hosts_file: Path | None = None
    """None: the one that the run was started with, or else the user's own."""
    give_up: float | None = None
    pull: bool = True
    """Bring checkpoints home as they appear, while it is followed."""
    meter: bool = True
    """False: without the meter, though it had it before."""
    reason: str = "resume"
    lost: bool = False
    """The host of the last attempt is not asked any more, and what goes on there counts no more."""
    on_busy: str | None = None
    """None: as the run was started."""
    anew: bool = False
    """Without a checkpoint it begins anew, even if the last attempt may still run."""


def resume(run: Run, wish: ResumeWish, listener: Listener, ask: Ask | None) -> Started:
    """Start the next attempt of a run from its newest verified checkpoint; whoever called follows it.

    Raises UsageError for a run that still runs or is being resumed, PackageError when its files are lost, and whatever
    stands in the way of a start.
    """
    if wish.hosts_file is None:
        wish = replace(wish, hosts_file=read_hosts_file(run))
    with _alone(run):
        job = parse_job(run.id, run.read())
        going = _Going(run, wish, listener, ask)
        try:
            prepared = going.prepare(job)
        except BaseException as error:
            if not isinstance(error, Exception):  # a signal
                listener.tell("interrupted", run=run.id, text=NOTHING)
            going.undo()
            going.close()
            raise
        try:
            return begin(prepared, run, listener)
        except BaseException:
            going.close()
            raise


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    lock = open_lock(run.folder / RESUME_LOCK)
    try:
        if not try_lock(lock):
            raise UsageError(
                f"another command is resuming {run.id} just now",
                hint=f"`remote-train show {run.id}` shows it",
            )
        yield
    finally:
        if lock is not None:
            os.close(lock)


class _Going:
    """A run on its way to its next attempt."""

    def __init__(self, run: Run, wish: ResumeWish, listener: Listener, ask: Ask | None) -> None:
        self.run = run
        self.wish = wish
        self.listener = listener
        self.ask = ask
        self.record = run.read()
        self.last = int(self.record["attempts"][-1]["attempt"])
        self.before = self._find_before()
        self.link = self._choose_link()
        hear([self.link], listener)
        self.session: Session | None = None
        self.superseded = False

    def _find_before(self) -> HostLink | None:
        """Return the way to the last attempt's host, None where its name means nothing any more and it is left."""
        try:
            return link_of(self.run, self.wish.hosts_file, self.ask)
        except UsageError:
            if not self.wish.local and self.wish.host in (None, self.record["host"]):
                raise
            return None

    def _choose_link(self) -> HostLink:
        name = "local" if self.wish.local else self.wish.host
        if self.wish.local and self.wish.host:
            raise UsageError("--local and --host contradict each other", hint="leave one of them out")
        if self.before is not None and name in (None, self.record["host"]):
            return self.before
        return make_link(
            str(name), None, self.wish.hosts_file, self.ask, Path(self.record["root"]), script_of(self.record)
        )

    @property
    def stays(self) -> bool:
        """Tell whether it goes on where it was."""
        return self.link is self.before

    def close(self) -> None:
        """Let go of the host."""
        if self.session is not None:
            self.session.close()

    def undo(self) -> None:
        """Have the run as it was: nothing was started."""
        if newest_of(self.run.read()) > self.last:
            retract_attempt(self.run)
        else:
            lift(self.run, self.last)

    def prepare(self, job: Job) -> Prepared:
        """Decide everything, and record the attempt that is to be started."""
        self.superseded = superseded = self.wish.lost or not self._learn()
        prepared, checkpoint = self._prepare(job)
        step = find_step(self.run, checkpoint) if checkpoint else None
        self._tell(checkpoint, step)
        entry = {
            **make_entry(prepared, time.time()),
            "reason": self.wish.reason,
            "checkpoint": checkpoint.as_record(step) if checkpoint else None,
        }
        append_attempt(self.run, entry, supersede=superseded)
        return prepared

    def _learn(self) -> bool:
        """Ask how the last attempt is; False when nobody can say that it is over. Raises UsageError while it runs."""
        if self.before is None:
            return self._go_without(Unreachable(f"no host is named {self.record['host']} any more"))
        try:
            session = self.before.connect()
            try:
                self._refuse_running(session)
            except BaseException:
                session.close()
                raise
            self._bring_home(self.before, session)
        except (Unreachable, ConnectionLost) as error:
            return self._go_without(error)
        return True

    def _go_without(self, error: Unreachable | ConnectionLost) -> bool:
        """Go on without the last attempt's host; tell whether it is known all the same that it is over."""
        name = self.record["host"]
        if self.stays:
            raise Unreachable(
                str(error),
                hint="--host NAME goes on elsewhere, --local on this machine's CPU, from the checkpoints that are here",
            )
        state = str(self.record["state"])
        self.listener.tell(
            "warn",
            text=f"{error}; as last seen, {self.run.id} was {state} on {name}"
            + ("" if state in OVER else ": what it still does there does not count any more"),
        )
        return state in OVER

    def _refuse_running(self, session: Session) -> None:
        if self.record["state"] == "not started":
            return
        state = session.request("state", run=self.run.id, attempt=self.last)
        if state["state"] not in ("unknown", "created"):
            self.record = keep_state(self.run, state)
        if state["state"] not in DONE:
            raise UsageError(
                f"{self.run.id} is {state['state']} on {self.record['host']}",
                hint=f"`remote-train logs -f {self.run.id}` follows it, `remote-train stop {self.run.id}` stops it",
            )

    def _bring_home(self, link: HostLink, session: Session) -> None:
        """Bring what the last attempt leaves; keep the connection if it goes on there."""
        self.session = session
        if self.record["state"] != "not started":
            leaving = Leaving(self.run, self.last, link, self.listener)
            self.session = leaving.bring_output(session)
            if not self.stays:
                self.session = leaving.bring_newest(self.session or link.connect())
        if not self.stays:
            self.close()
            self.session = None

    def _prepare(self, job: Job) -> tuple[Prepared, Checkpoint | None]:
        root = Path(self.record["root"])
        secrets = recall_environment(self.run, job.project, self.wish.secrets, self.wish.known, self.ask)
        package, files = recall_package(self.record, root)
        reached = self._reach()
        checkpoint = self._choose_checkpoint(reached.session)
        rows = checkpoint.make_rows() if checkpoint else ()
        meter = job.meter and self.wish.meter
        job = replace(self._adapt(job), env=keep_unrecorded(job, secrets), restore=rows, meter=meter)
        job = replace(job, args=(*job.args, *self.wish.args), on_busy=self.wish.on_busy or job.on_busy)
        for file in checkpoint.files if checkpoint else ():
            if file.sha256 is not None and file.place is not None:
                files.others[file.sha256] = file.place
        files.refuse_lost(reached.session)
        recalled = recall_data_of(self.record, job, self.link.host, self.listener)
        job = replace(job, shipped=recalled.shipped)
        check_space(reached.session, self.link.host.name, rows)
        plan = make_plan(job, self.link.host, reached.facts, package.package_id, paths_of(package))
        wish = self.wish
        request = Request(hosts_file=wish.hosts_file, give_up=wish.give_up, pull=wish.pull)
        prepared = Prepared(
            root,
            request,
            job,
            package,
            reached,
            plan,
            secrets,
            files=files,
            attempt=self.last + 1,
            supersede=self.wish.lost
            or are_left(self.record, (self.link.host.name, self.link.host.state_dir)),
            data=recalled.data,
        )
        return prepared, checkpoint

    def _adapt(self, job: Job) -> Job:
        """Ask for as many GPUs where the ones that were named are not."""
        named = job.gpus.split(",") if not (job.gpus.isdigit() or job.gpus == "all") else []
        count = len([item for item in named if item.strip()])
        return replace(job, gpus=str(count)) if count and not self.stays else job

    def _reach(self) -> Reached:
        session = self.session = self.session or self._connect()
        facts, why = self.link.read_fit_facts(session)
        if why is not None:
            raise HostUnfit(
                f"{self.link.host.name}: {why}", hint="go on elsewhere with --host NAME, or --local"
            )
        self.listener.tell("reached", **describe_reached(self.link, facts))
        return Reached(self.link, session, facts)

    def _connect(self) -> Session:
        if not self.link.is_local:
            self.listener.tell("reaching", hosts=[self.link.host.name])
        try:
            return self.link.connect()
        except Unreachable as error:
            raise Unreachable(
                error.message, hint="--host NAME goes on elsewhere, --local on this CPU"
            ) from error

    def _choose_checkpoint(self, session: Session) -> Checkpoint | None:
        found = list(list_here(self.run))
        place = (self.link.host.name, self.link.host.state_dir)
        for item in reversed(self.record["attempts"]):
            there = (item["host"], item.get("state_dir", self.record.get("state_dir")))
            # What a superseded one made after it was cut off is not mixed in.
            older = item.get("superseded") or any(each.attempt > item["attempt"] for each in found)
            if there == place and not older:
                found += list_there(session, self.run, item["attempt"], item["plan"].get("checkpoints") or ())
        chosen = choose_newest(found)
        if chosen is None and self.superseded and not self.wish.anew and self.record["state"] not in OVER:
            raise refuse_anew(self.run.id, self.record["host"])
        if self.wish.lost and self.wish.anew:
            check_progress(self.record, chosen)
        beside = list_beside(chosen, found) if chosen else []
        if chosen and beside:
            text = f"only {chosen.unit} is put back; beside it were written {', '.join(beside[:NAMED])}"
            hint = "a checkpoint of several files is put back whole if it is a folder of its own, `checkpoint-N/`"
            self.listener.tell("warn", text=text, hint=hint)
        return chosen

    def _tell(self, checkpoint: Checkpoint | None, step: int | None) -> None:
        facts: dict[str, Any] = {"run": self.run.id, "attempt": self.last + 1, "host": self.link.host.name}
        if checkpoint is None:
            self.listener.tell(
                "warn",
                text=f"{self.run.id} has no checkpoint, here or on {self.link.host.name}: it begins anew",
            )
        unit = checkpoint.as_record(step) if checkpoint else None
        self.listener.tell("resuming", checkpoint=unit, **facts)
