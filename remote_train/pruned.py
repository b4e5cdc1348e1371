"""A run that has left its host: what is known and here of it stands in for what could be fetched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.errors import ConnectionLost, PullIncomplete, RemoteTrainError
from remote_train.ledger import PULLED, read_ledger
from remote_train.pull import Pulled, PullWish
from remote_train.retention import is_still

if TYPE_CHECKING:
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.session import Session


def was_pruned(run: Run, session: Session) -> bool:
    """Tell whether a run whose removal was asked for, and not answered, is gone from its host; keep that."""
    asked = run.read().get("pruning")
    if not asked or session.request("state", run=run.id)["state"] != "unknown":
        return False
    run.update(pruned=asked, pruning=None)
    return True


def is_away(run: Run, link: HostLink) -> bool:
    """Tell whether a run has left its host; one that a host which can be reached still has is taken for removed no more."""
    if not run.read().get("pruned"):
        return False
    try:
        session = link.connect()
    except (RemoteTrainError, ConnectionLost):
        return True
    try:
        away = bool(session.request("state", run=run.id)["state"] == "unknown")
    except (RemoteTrainError, ConnectionLost):
        return True
    finally:
        session.close()
    if not away:
        run.update(pruned=None, pruning=None, stays=None)
    return away


def render_pruned(run: Run) -> str:
    """Return which run's files went from which host, and when."""
    record = run.read()
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["pruned"]))
    return f"the files of {run.id} were removed from {record['host']} on {when}"


def recall_pulled(run: Run, wish: PullWish, listener: Listener) -> Pulled:
    """Return what earlier pulls brought of it; raise PullIncomplete where that is not what is wished for."""
    ledger = read_ledger(run.folder / PULLED)
    here = [Path(place) for place, entry in ledger.items() if is_still(Path(place), entry)]
    whole = {ledger[str(path)].get("path") for path in here}
    away = [
        place
        for place, entry in ledger.items()
        if Path(place) not in here and (entry.get("path") is None or entry["path"] not in whole)
    ]
    names = ", ".join(map(str, here)) or "nothing was pulled before that"
    if not here or away or wish.to is not None or wish.match or wish.everything:
        missing = f"; not as it was pulled any more: {', '.join(away)}" if away else ""
        raise PullIncomplete(
            f"{render_pruned(run)}{missing}",
            hint=f"at home: {names}",
            here=[str(path) for path in here],
        )
    listener.tell("note", text=f"{render_pruned(run)}; at home: {names}")
    return Pulled(unchanged=here)
