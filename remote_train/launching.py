"""`run`, from top to bottom: prepare (`preparing.py`), record, start exactly once. Following it is `attach.py`."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from remote_train.attempt_list import change_plan, retract_attempt
from remote_train.datasets import DataSender, make_persistent
from remote_train.errors import (
    ConnectionGivenUp,
    ConnectionLost,
    HostBusy,
    HostKeyRefused,
    HostSpace,
    HostUnfit,
    LocalSpace,
    LoginRefused,
    NameTaken,
    PackageError,
    ProtocolError,
    RemoteTrainError,
    Unreachable,
    UsageError,
)
from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish, name_checkpoints
from remote_train.host import layout
from remote_train.jobs import make_record, make_run_id
from remote_train.plan import make_plan
from remote_train.preflight import find_unfit
from remote_train.preparing import Prepared, Request, paths_of
from remote_train.preparing_from import prepare
from remote_train.reconnect import Losses, Patience, reconnect
from remote_train.records import Run, create_run, drop_run
from remote_train.ship import FactsChanged, Shipment, make_start_message, refuse_taken_name

if TYPE_CHECKING:
    from remote_train.cleaning import Cleaning
    from remote_train.kept_package import Keeping
    from remote_train.listener import Listener
    from remote_train.plan import Plan
    from remote_train.session import Session
    from remote_train.transport import Ask

AMBIGUOUS = (ConnectionGivenUp, HostKeyRefused, LoginRefused, ProtocolError)
"""Errors after which a start may have happened all the same."""

LOOKS = 3
"""How often a host may change between a look at it and the start."""
NOTHING = "nothing was started"
TRUTH_SECONDS = 0.6
"""How long a Ctrl-C waits for the answer to a start; the prompt is back after a second at most."""


@dataclass
class Started:
    """A run that is under way, with the connection that started it."""

    run: Run
    prepared: Prepared
    following: Following
    state: dict[str, Any]
    cleaning: Cleaning
    """What goes on behind it: old runs leave the host."""
    keeping: Keeping | None = None
    """What else does: its package is kept on this laptop."""

    def wait_behind(self, listener: Listener) -> None:
        """Stay for what goes on behind it, not long."""
        self.cleaning.wait(listener)
        if self.keeping is not None:
            self.keeping.wait()


def start(request: Request, listener: Listener, ask: Ask | None) -> Started:
    """Decide, record and start a run; whoever called follows it, or lets it be."""
    prepared = _prepare(request, listener, ask)
    while True:
        try:
            return launch(prepared, listener)
        except HostBusy as error:  # somebody was quicker between the look at the host and the start
            prepared.reached.session.close()
            if not list_left(prepared):
                raise
            listener.tell("passed_over", reason=error.message)
            busy = error
        except BaseException:
            prepared.reached.session.close()
            raise
        prepared = _prepare_next(prepared, busy, listener, ask)


def _prepare(
    request: Request, listener: Listener, ask: Ask | None, before: Prepared | None = None
) -> Prepared:
    try:
        return prepare(request, listener, ask, before)
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal
            listener.tell("interrupted", text=NOTHING)
        raise


def _prepare_next(before: Prepared, busy: HostBusy, listener: Listener, ask: Ask | None) -> Prepared:
    """Decide the same for the hosts that are left. A busy one can be reached: this machine does not take its place."""
    request = replace(before.request, hosts=list_left(before), fallback=False)
    try:
        found = _prepare(request, listener, ask, before)
    except (HostSpace, HostUnfit, Unreachable, UsageError) as error:  # GPUs by names that the last has not
        raise HostBusy(f"{busy.message}\n{error.message}", hint=busy.hint) from error
    request = replace(found.request, hosts=before.request.hosts, fallback=before.request.fallback)
    return replace(found, request=request, hosts=before.hosts)


def list_left(prepared: Prepared) -> tuple[str, ...]:
    """Return the hosts after the one that was reached, where the user said to take the next."""
    name = prepared.plan.host
    if prepared.job.on_busy != "next" or name not in prepared.hosts:
        return ()
    return prepared.hosts[prepared.hosts.index(name) + 1 :]


def import_followers() -> None:
    """Import what follows a run; done while the host starts it, it costs the launch nothing."""
    import remote_train.attach  # noqa: PLC0415  (see above)
    import remote_train.cleaning  # noqa: PLC0415
    import remote_train.kept_package  # noqa: F401, PLC0415


def launch(prepared: Prepared, listener: Listener) -> Started:
    """Record the run here, start it there exactly once, and return it with its first connection."""
    request = prepared.request
    now = time.time()
    run = create_run(
        prepared.root / "runs",
        request.name or make_run_id(prepared.job.project.project, now),
        make_record(prepared, now),
    )
    try:
        return begin(prepared, run, listener)
    except HostBusy:
        if list_left(prepared):
            drop_run(run)
        raise


def begin(prepared: Prepared, run: Run, listener: Listener) -> Started:
    """Start an attempt that is recorded, exactly once, and return it with its first connection."""
    reached, request = prepared.reached, prepared.request
    ranks = [str(rank) for rank in range(prepared.plan.processes)]
    checkpoints = name_checkpoints(prepared.plan.checkpoints) if request.pull else ()
    outputs = [*ranks, *OUTPUTS_ALWAYS]
    wish = Wish(run, prepared.attempt, outputs, {0}, give_up=request.give_up, checkpoints=checkpoints)
    following = Following(wish, reached.link, listener, writing=True)
    asking = Asking()
    try:
        plan, state = _start(prepared, run, following, asking)
    except NameTaken as error:
        if prepared.attempt == 1:
            drop_run(run)
        else:
            retract_attempt(run)
            error.hint = "try again once what runs there is over, or go on elsewhere with --host NAME"
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            _note_unstarted(asking, following, error)
        else:
            _say_what_is_true(asking, following)
        raise
    try:
        return _announce(prepared, following, plan, state)
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal
            listener.tell("detached", run=run.id)
        raise


def _announce(prepared: Prepared, following: Following, plan: Plan, state: dict[str, Any]) -> Started:
    """Record and tell that a run has been started."""
    run, reached, listener = following.wish.run, prepared.reached, following.listener
    try:
        run.update(state="running")
    except LocalSpace as error:  # it runs: the stream goes on, and what could not be kept is told at its end
        following.mirror.fail(error)
    listener.tell("started", run=run.id, host=reached.link.host.name, plan=plan, state=state["state"])
    from remote_train.cleaning import Cleaning, tell_usage  # noqa: PLC0415  (see import_followers)
    from remote_train.kept_package import Keeping  # noqa: PLC0415  (as above)

    tell_usage(state.get("usage"), reached.link.host.name, listener)
    keeping = Keeping(prepared.root, prepared.package) if prepared.files is None else None
    cleaning = Cleaning(run, following.session or reached.session, reached.link)
    return Started(run, prepared, following, state, cleaning, keeping)


@dataclass
class Asking:
    """What is known of a start that is under way."""

    shipment: Shipment | None = None
    lost: bool = False
    """A connection was lost that had carried it."""

    def learn(self) -> dict[str, Any] | None:
        """Return the state that it is in, {} when nothing was started, None when nobody knows."""
        found = self.shipment.learn_answer(TRUTH_SECONDS) if self.shipment else {}
        return None if found == {} and self.lost else found


def _say_what_is_true(asking: Asking, following: Following) -> None:
    """At a signal, record and tell whether the run was started."""
    run, listener = following.wish.run, following.listener
    try:
        state = asking.learn()
    except RemoteTrainError as refusal:
        state = None if isinstance(refusal, AMBIGUOUS) else {}
    if state is None:
        _note_unknown(following)
    elif not state:
        _note_nothing(following)
        listener.tell("interrupted", run=run.id, text=NOTHING)
    else:
        run.update(state="running")
        following.note_state(state)
        listener.tell("detached", run=run.id)


def _note_unstarted(asking: Asking, following: Following, error: Exception) -> None:
    """Record that an attempt was not started, or that only its host knows."""
    if asking.lost and isinstance(error, PackageError):
        error.hint = None  # it says to start anew
    if not asking.lost and isinstance(error, RemoteTrainError) and not isinstance(error, AMBIGUOUS):
        with contextlib.suppress(LocalSpace):  # the error that is on its way says more
            _note_nothing(following)
    else:
        _note_unknown(following)


def _note_nothing(following: Following) -> None:
    """Record that nothing was started: a run that had other attempts is as it was before."""
    if following.wish.attempt == 1:
        following.wish.run.update(state="not started")
    else:
        retract_attempt(following.wish.run)


def _note_unknown(following: Following) -> None:
    run, host = following.wish.run, following.link.host.name
    with contextlib.suppress(LocalSpace):  # as above
        run.update(state="unknown")
    hint = f"`remote-train show {run.id}` asks there"
    following.listener.tell("warn", text=f"{run.id} may have been started on {host}", hint=hint)


def make_message(
    prepared: Prepared, run: Run, token: str, plan: Plan, facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the start request of an attempt; one that is not the first says what is known of those before it."""
    message = make_start_message(run.id, token, plan.as_message(), facts, prepared.secret_env)
    if plan.gpus and prepared.job.on_busy != "queue":
        message["on_busy"] = prepared.job.on_busy
    if prepared.attempt == 1:
        return message
    older = range(1, prepared.attempt)
    tokens = {str(number): (run.attempt(number).read(layout.ATTEMPT) or {}).get("token") for number in older}
    return {**message, "attempt": prepared.attempt, "known": tokens, "supersede": prepared.supersede}


def _start(prepared: Prepared, run: Run, following: Following, asking: Asking) -> tuple[Plan, dict[str, Any]]:
    """Start the attempt and return the plan it got, and its state; a connection lost on the way is taken up again with the same token."""
    link, session = prepared.reached.link, prepared.reached.session
    token = secrets.token_hex(16)
    plan, facts = prepared.plan, prepared.reached.facts
    known: dict[str, Any] = {"package": prepared.package.package_id}  # of some only the host knows the files
    base = link.memory.read_base(prepared.root) if prepared.package.rows else known

    def meanwhile() -> None:
        """While the host works: what follows the run, and what it will hold. If it does not, it will say so."""
        import_followers()
        if prepared.package.rows and base.get("package") != prepared.package.package_id:
            link.memory.write_base(prepared.root, prepared.package.package_id, prepared.package.rows)

    losses, looks = Losses(), 0
    data = DataSender(prepared.root, link, prepared.data, following.listener)
    data.note_progress = losses.note_progress
    make_persistent(link, prepared.root, prepared.job.project.persist)
    state: dict[str, Any] | None = None
    asked = prepared.request.name is None or prepared.attempt > 1  # an id that we made is free
    while state is None:
        message = make_message(prepared, run, token, plan, facts)
        source = prepared.files or prepared.root
        asking.shipment = shipment = Shipment(session, source, prepared.package, meanwhile)
        shipment.restore, shipment.bring_data, shipment.listener = plan.restore, data.send, following.listener
        try:
            if not asked:
                refuse_taken_name(session, run.id)
                asked = True  # from here on a run of this name may be ours
            if not asking.lost:
                data.send(session)
            # Where it may have begun that is asked first: what would be sent may not be here any more.
            state = shipment.start(known if asking.lost else base, message, following.make_request(session))
            following.listener.tell("sent", files=shipment.sent.files, bytes=shipment.sent.bytes)
        except FactsChanged:
            looks += 1
            if looks > LOOKS:
                raise ProtocolError(f"{link.host.name} says again and again that it has changed") from None
            facts, plan = _look_again(prepared, session)
            change_plan(run, plan.host, plan.as_message())
            following.change_outputs([*map(str, range(plan.processes)), *OUTPUTS_ALWAYS])
        except ConnectionLost as error:
            # The start may have happened or not: only asking again with its token tells. Never a fallback.
            asking.lost = asking.lost or shipment.asked
            patience = Patience(run.id, prepared.request.give_up, following.listener, losses)
            session = reconnect(link, error, patience, lambda _session: None)
    following.note_state(state)
    return plan, state


def _look_again(prepared: Prepared, session: Session) -> tuple[dict[str, Any], Plan]:
    """Return the facts of a host that is not as it was remembered, and the plan for what it is now."""
    link = prepared.reached.link
    facts = link.read_facts(session, fresh=True)
    why = find_unfit(link.host, facts)
    if why is not None:
        hint = f"`remote-train hosts check {link.host.name}`"
        raise HostUnfit(f"{link.host.name}: {why}", hint=hint)
    package = prepared.package
    return facts, make_plan(prepared.job, link.host, facts, package.package_id, paths_of(package))
