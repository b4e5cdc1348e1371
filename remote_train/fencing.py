"""Fences: an attempt that counts no more is stopped at the first contact with its host, whichever command makes it.

    STATE/client/fences/HOST/RUN.json    the attempts of a run to be stopped there, and the attempt that each made way for

A fence is durable before the next attempt is recorded, and goes once the host says that what it is about has ended, or is
not there. It holds only from when run.json has that attempt: a hop that broke off before stops nothing.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempts import change_item, counts_no_more, item_of, newest_of, place_of
from remote_train.errors import LocalSpace, PullIncomplete, RemoteTrainError
from remote_train.flocks import is_locked, locked
from remote_train.host import durable, layout
from remote_train.memory import safe_name
from remote_train.private import make_private
from remote_train.records import LEFTOVER, RESUME_LOCK, Run, client_root, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.session import Session

GRACE = 5.0
"""Seconds that a copy gets whose work nobody will use."""
GONE = ("ended", "lost", "unknown")


def fences_of(host: str, state_dir: str | None) -> Path:
    """Return the folder with the fences of a host; it is there only if there are any, or were."""
    return client_root() / "fences" / safe_name(f"{host}:{state_dir or ''}")


def fence(run: Run, number: int, by: int) -> None:
    """Have an attempt stopped, durably, from when run.json has attempt `by` behind it (`attempt_list.append_attempt`).

    Raises LocalSpace where that cannot be kept: then nothing may be started.
    """
    record = run.read()
    place = place_of(record, number)
    folder = fences_of(*place)
    cookie = (run.attempt(number).read(layout.ATTEMPT) or {}).get("cookie")
    try:
        make_private(folder)
        with locked(folder):
            held = read_json(folder / f"{run.id}.json")
            attempts = {**held.get("attempts", {}), str(number): {"by": by, "cookie": cookie}}
            fences = {"run": run.id, "folder": str(run.folder), "attempts": attempts}
            write_json(folder / f"{run.id}.json", fences, sync=True)
    except OSError as error:
        text = f"{folder}: {error.strerror or error}; without a fence there, nothing is started elsewhere"
        raise LocalSpace(text, hint="free space there, or make it writable", path=str(folder)) from error


def lift(run: Run, number: int) -> None:
    """Take an attempt's fence away: it counts, since nothing was started in its place."""
    if not run.is_gone():
        _drop(fences_of(*place_of(run.read(), number)) / f"{run.id}.json", number)


def _drop(path: Path, number: int) -> None:
    """Take one attempt out of a fence, and the fence away when it was the last."""
    with contextlib.suppress(OSError), locked(path.parent):
        held = read_json(path)
        attempts = {key: item for key, item in held.get("attempts", {}).items() if key != str(number)}
        if attempts:
            write_json(path, {**held, "attempts": attempts}, sync=True)
        else:
            path.unlink(missing_ok=True)


def list_fences(host: str, state_dir: str | None) -> Iterator[tuple[Path, Run, int, dict[str, Any]]]:
    """Yield what is to be stopped on a host: the fence's file, the run, the attempt, and `by` and `cookie`."""
    folder = fences_of(host, state_dir)
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json")):
        if LEFTOVER.search(path.name):
            continue
        held = read_json(path)
        for number, facts in sorted(held.get("attempts", {}).items()):
            yield path, Run(path.stem, Path(held["folder"])), int(number), facts


def enforce(session: Session, host: str, state_dir: str | None) -> None:
    """Stop on a host what counts no more there; a fence whose stop is not confirmed stays for the next contact.

    Raises ConnectionLost.
    """
    for path, run, number, facts in list(list_fences(host, state_dir)):
        if not _holds(run, number):
            if not is_locked(run.folder / RESUME_LOCK):  # else its next attempt is about to be recorded
                _drop(path, number)
            continue
        with contextlib.suppress(RemoteTrainError):
            _stop(session, path, run, number, facts)


def _holds(run: Run, number: int) -> bool:
    record = durable.read_record(str(run.folder / "run.json"))
    return record is None or (number < newest_of(record) and bool(item_of(record, number).get("superseded")))


def _stop(session: Session, path: Path, run: Run, number: int, facts: dict[str, Any]) -> None:
    asked = {"run": run.id, "attempt": number, "cookie": facts.get("cookie")}
    answer = session.request("stop", grace=GRACE, superseded_by=int(facts["by"]), **asked)
    if answer["state"] in GONE and not answer["survivors"]:
        ended = session.request("state", run=run.id, attempt=number) if answer["state"] == "ended" else {}
        _drop(path, number)
        known = {"fenced": time.time(), "state": ended.get("state", "lost"), "exit": ended.get("exit")}
        run.change(lambda record: {"attempts": change_item(record, number, **known)})


@contextlib.contextmanager
def publishing(run: Run, number: int) -> Iterator[None]:
    """Keep a fence out while a file of an attempt gets its name here; raise PullIncomplete when it counts no more."""
    with locked(run.folder):
        if counts_no_more(run, number):
            raise PullIncomplete(
                f"attempt {number} of {run.id} counts no more: what it made is left where it is",
                hint=f"`remote-train pull {run.id}` brings what the newest attempt made",
            )
        yield


def is_pending(record: dict[str, Any], run: str, number: int) -> bool:
    """Tell whether an attempt that counts no more may still be running, for all that is known."""
    if not item_of(record, number).get("superseded"):
        return False
    held = read_json(fences_of(*place_of(record, number)) / f"{run}.json")
    return str(number) in held.get("attempts", {})


def list_pending(run: Run) -> list[tuple[int, str]]:
    """Return the attempts that will be stopped at the next contact with their hosts, and those hosts."""
    record = run.read()
    numbers = [item["attempt"] for item in record["attempts"]]
    return [(number, place_of(record, number)[0]) for number in numbers if is_pending(record, run.id, number)]


def render_pending(run: Run) -> list[str]:
    """Return, of a run that went on elsewhere, what runs where and which copies are stopped only at the next contact."""
    pending = list_pending(run)
    record = run.read()
    newest = newest_of(record)
    lines = [f"attempt {newest} runs on {place_of(record, newest)[0]}"] if pending else []
    return lines + [
        f"attempt {number} may still run on {host}: the next command that reaches {host} stops it"
        for number, host in pending
    ]
