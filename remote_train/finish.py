"""After a run's end: its record, the newest checkpoint, the words of who failed, and the error the end amounts to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train.attempts import counts_no_more, newest_of, place_of, update_newest
from remote_train.errors import (
    ConnectionGivenUp,
    ConnectionLost,
    LocalSpace,
    PullIncomplete,
    RemoteTrainError,
)
from remote_train.host.files import tail_offset
from remote_train.outcome import Standing, has_failed, make_verdict
from remote_train.pull import Pull, PullWish
from remote_train.restorable import name_here
from remote_train.session import Data, End
from remote_train.watch import read_last_metric, read_pieces

if TYPE_CHECKING:
    from remote_train.attach import Attached
    from remote_train.follow import Outcome, Wish
    from remote_train.session import Session

TAIL_LINES = 20
TAIL_BYTES = 256 * 1024
TAIL_SECONDS = 30.0


@dataclass
class Brought:
    """What came home at the end."""

    checkpoints: list[str] = field(default_factory=list)
    home: bool = False
    """They are here, and not only known."""
    trouble: RemoteTrainError | ConnectionLost | None = None


def finish_run(attached: Attached, outcome: Outcome, *, pull: bool) -> None:
    """Record the end, bring the newest checkpoint, and raise the error the end amounts to, if it is one.

    The training's own failure outranks a pull that went wrong.
    """
    run, link, listener = attached.wish.run, attached.link, attached.listener
    attached.tell_gaps(attached.gaps.sift((outcome.exit or {}).get("gaps")))
    mirror_failure = _record_end(attached, outcome)
    if counts_no_more(run, attached.wish.attempt):
        attached.following.close()
        raise mirror_failure or make_superseded(run.id, run.read(), attached.wish.attempt)
    gone = run.is_gone()
    pull = pull and not gone  # who removed the folder wants no new one
    brought = Brought()
    try:
        if has_failed(outcome):
            _show_failure(attached, outcome)
        _bring_home(attached, outcome, brought, pull=pull)
    except (RemoteTrainError, ConnectionLost) as error:
        listener.tell("warn", text=str(error), hint=getattr(error, "hint", None))
        brought.trouble = error
    finally:
        attached.following.close()
    pulled = brought.checkpoints if brought.home else None
    standing = read_standing(attached, brought.checkpoints, home=brought.home)
    name = f"{link.host.name}:{run.id}" if gone else run.id
    verdict = make_verdict(name, link.host.name, outcome, standing)
    if verdict is None and brought.trouble is not None:
        verdict = as_verdict(brought.trouble, run.id)
    listener.tell("ended", run=run.id, outcome=outcome, verdict=verdict, pulled=pulled, watch=attached.watch)
    if verdict is not None:
        raise verdict
    if mirror_failure is not None:
        raise mirror_failure


def make_superseded(run: str, record: dict[str, Any], number: int) -> ConnectionGivenUp:
    """Return what who followed an attempt is told when it counts no more: its end is not the run's."""
    newest = newest_of(record)
    where = place_of(record, newest)[0]
    went_on = f"the run went on as attempt {newest} on {where}" if newest != number else "another goes on"
    return ConnectionGivenUp(
        f"attempt {number} of {run} counts no more: {went_on}",
        hint=f"`remote-train logs -f {run}` follows it",
        run=run,
        superseded=number,
    )


def _bring_home(attached: Attached, outcome: Outcome, brought: Brought, *, pull: bool) -> None:
    """Bring the newest checkpoint, or see which it is where that is news; tell what remains on the host."""
    session, gone = attached.following.session, attached.wish.run.is_gone()
    if session is None:
        return
    if not gone and (pull or has_failed(outcome) or outcome.exit is None):
        brought.checkpoints = _bring_newest(attached, session, pull=pull)
    brought.home = pull
    if pull:
        tell_remaining(attached)
        if attached.courier is not None:
            brought.trouble = attached.courier.serious_trouble()


def _record_end(attached: Attached, outcome: Outcome) -> LocalSpace | None:
    """Keep how the run ended; return what the user is told at the end if not all of it could be kept."""
    run, mirror = attached.wish.run, attached.following.mirror
    try:
        update_newest(run, attached.wish.attempt, state=outcome.state, exit=outcome.exit, why=outcome.why)
    except LocalSpace as error:
        mirror.fail(error)
    if not run.is_gone():
        return mirror.make_failure(run.id)
    mirror.removed = True
    if has_failed(outcome) or (outcome.exit or {}).get("stopped") or outcome.exit is None:
        attached.following.tell_removed()  # what it ends with says nothing of it
    return LocalSpace(
        f"{run.id} has ended well, and its records in {run.folder} were removed meanwhile",
        hint=f"`remote-train logs {attached.link.host.name}:{run.id}` brings its output anew, `pull` its files",
        path=str(run.folder),
    )


def as_verdict(error: RemoteTrainError | ConnectionLost, run: str) -> RemoteTrainError:
    """Return what a run ends with whose training was fine and whose checkpoint did not come."""
    if isinstance(error, RemoteTrainError):
        return error
    return PullIncomplete(
        f"the newest checkpoint did not come: {error}", hint=f"`remote-train pull {run}` brings it"
    )


def _bring_newest(attached: Attached, session: Session, *, pull: bool) -> list[str]:
    """Return the paths of the newest checkpoint: here after a pull, else as the host names them."""
    wish = attached.wish
    pulling = Pull(wish.run, wish.attempt, attached.link, session, attached.listener)
    latest = PullWish(latest=True, give_up=wish.give_up)
    try:
        if not pull:
            return [str(row["path"]) for row in pulling.list_files(latest)]
        pulled = pulling.bring(latest)
    finally:  # another one, where the connection was lost meanwhile: who follows closes it
        attached.following.session = pulling.session
    return [str(path) for path in (*pulled.files, *pulled.unchanged)]


def tell_remaining(attached: Attached) -> None:
    """Tell what of the run's files is on its host alone; where that cannot be found out, nothing."""
    run, session = attached.wish.run, attached.following.session
    if session is None:
        return
    pulling = Pull(run, attached.wish.attempt, attached.link, session, attached.listener)
    try:
        rows = pulling.list_remaining()
    except (RemoteTrainError, ConnectionLost):
        return
    if rows:
        size = sum(row["size"] for row in rows)
        host = attached.link.host.name
        attached.listener.tell("remaining", run=run.id, host=host, files=len(rows), bytes=size)


def read_standing(attached: Attached, checkpoints: list[str], *, home: bool) -> Standing:
    """Return how far the run came, for words about an end that was none."""
    wish, metric, watch = attached.wish, attached.last, attached.watch
    if metric is None:
        metric, watch = read_last_metric(wish.attempt, wish.run.attempt(wish.attempt))
    progress = watch.deriver.progress if watch else None
    if home and not checkpoints:
        checkpoints = name_here(wish.run)  # an attempt may have made none, and the run have one
    return Standing(
        step=metric.step if metric else None,
        steps=progress[1] if progress else None,
        checkpoint=checkpoints[0] if checkpoints else None,
        home=home,
    )


def _show_failure(attached: Attached, outcome: Outcome) -> None:
    """Tell the last lines of the rank that failed first, or of the launcher when no rank said anything."""
    ended = outcome.exit or {}
    first = ended.get("first_failure") or {"rank": 0}
    rank = int(first["rank"])
    outputs = ended.get("outputs", {})
    name = str(rank) if outputs.get(str(rank)) else "launcher"
    if name.isdigit() and int(name) in attached.wish.shown:
        return  # it has just gone by
    session = attached.following.session
    if session is not None:
        text = read_tail(session, attached.wish, name, TAIL_LINES)
    else:  # all of it is here
        path = attached.wish.run.attempt(attached.wish.attempt).output(name)
        begin = max(
            tail_offset(str(path), TAIL_LINES), attached.following.mirror.attempt.offset(name) - TAIL_BYTES
        )
        text = b"".join(read_pieces(path, begin)).rstrip(b"\n")
    if text:
        launcher = ended.get("launcher")
        attached.listener.tell("failure", rank=rank, name=name, launcher=launcher, tail=text)


def read_tail(session: Session, wish: Wish, name: str, lines: int) -> bytes:
    """Return the last lines of one output of an attempt that has ended."""
    facts: dict[str, Any] = {"run": wish.run.id, "attempt": wish.attempt}
    offset = 0
    if name.isdigit():
        offset = session.request("tail", rank=int(name), lines=lines, **facts)["offset"]
    stream = session.new_stream()
    outputs = [{"stream": stream, "name": name, "offset": offset}]
    session.request("follow", outputs=outputs, wait=False, **facts)
    held = b""
    deadline = time.monotonic() + TAIL_SECONDS
    while time.monotonic() < deadline and (item := session.next_item(10.0)) is not None:
        if isinstance(item, End) and item.stream == stream:
            break
        if isinstance(item, Data) and item.stream == stream:
            held = (held + item.payload)[-TAIL_BYTES:]
    return b"\n".join(held.rstrip(b"\n").split(b"\n")[-lines:])
