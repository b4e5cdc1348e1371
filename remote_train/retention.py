"""Which runs may leave their host, as this laptop knows it; the host looks again before anything goes.

The last KEEP ended runs of a project stay. Of an older one the host is told what is here: the sizes of the mirrors,
and every pulled file that still is what the pull brought. Records, mirrors and pulled files here are never touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempts import keep_standing, places_of, standing_at
from remote_train.errors import ProtocolError
from remote_train.host import layout, life
from remote_train.ledger import JOURNAL, PULLED, read_ledger
from remote_train.records import (
    LEFTOVER,
    MIRROR_LOCK,
    PULL_LOCK,
    PULLER_LOCK,
    RESUME_LOCK,
    client_root,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from remote_train.attempts import Place
    from remote_train.records import Run
    from remote_train.session import Session

KEEP = 10
AT_ONCE = 20
"""Runs that one launch asks for."""
ASK_AGAIN_SECONDS = 24 * 3600.0
FOR_NOW = ("busy", "failed", "running")
"""Reasons to stay that the next launch may find gone."""
REQUEST_BYTES = 512 * 1024
TIDY_SECONDS = 3600.0
MISSING_SECONDS = 30 * 24 * 3600.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Offer:
    """Runs that a host may take away, and what of them is here."""

    place: Place
    wishes: Sequence[Row]
    runs: Sequence[Run]
    more: Row = field(default_factory=dict)
    """What else is to go: `data`, `persist` (see `host/tidy.py`)."""


def pick_old(runs: Iterable[Run], host: str, state_dir: str | None, keep: int = KEEP) -> list[Run]:
    """Return the runs on this host that are over and older than the `keep` newest such of their project, oldest first.

    A run whose attempts ran on several hosts is on each of them.
    """
    place = (host, state_dir)
    projects: dict[Path, list[tuple[float, Run]]] = {}
    for run in runs:
        record = run.read()
        here = place in places_of(record)
        if here and record.get("state") in life.FINAL and not standing_at(record, place).get("pruned"):
            when = (record.get("exit") or {}).get("ended") or record.get("created") or 0.0
            projects.setdefault(run.folder.parent, []).append((float(when), run))
    old: list[Run] = []
    for found in projects.values():
        found.sort(key=lambda item: (item[0], item[1].id))
        old += [run for _, run in found[: max(0, len(found) - keep)]]
    return old


def make_wish(run: Run, place: Place | None = None) -> Row:
    """Return what is here of a run's attempts on one host, by default the newest's, as that host's `prune` takes it."""
    attempts = {}
    record = run.read()
    places = places_of(record)
    newest = _list_newest(run)
    for number in places.get(place or list(places)[-1], []):
        mirror = run.attempt(number)
        names = [*map(str, mirror.ranks()), "launcher"]
        token = (mirror.read(layout.ATTEMPT) or {}).get("token")
        attempts[str(number)] = {
            "token": token,
            "outputs": {name: mirror.offset(name) for name in names},
            "replaced": [path for path, attempt in newest.items() if attempt > number],
        }
    return {"run": run.id, "attempts": attempts, "files": list_home(run)}


def _list_newest(run: Run) -> dict[str, int]:
    """Return from which attempt each pulled file is that is still here; older attempts' versions of it matter no more."""
    newest: dict[str, int] = {}
    for place, entry in read_ledger(run.folder / PULLED).items():
        if not isinstance(entry, dict) or "weights_of" in entry or not {"path", "attempt"} <= set(entry):
            continue
        if {"size", "here_mtime_ns"} <= set(entry) and is_still(Path(place), entry):
            newest[entry["path"]] = max(newest.get(entry["path"], 0), int(entry["attempt"]))
    return newest


def list_home(run: Run) -> list[list[Any]]:
    """Return path, size, mtime_ns and SHA-256, as the host stated them, of each pulled file that is still here."""
    home = []
    for place, entry in read_ledger(run.folder / PULLED).items():
        if not isinstance(entry, dict) or not {"size", "mtime_ns", "sha256", "here_mtime_ns"} <= set(entry):
            continue
        if "weights_of" in entry:  # made of a file there, and no copy of it
            continue
        path = entry.get("path") or _below(place, str(run.files))
        if path is not None and is_still(Path(place), entry):
            home.append([path, entry["size"], entry["mtime_ns"], entry["sha256"]])
    return home


def _below(place: str, folder: str) -> str | None:
    """Return where a file lay on the host, by where it lies here: what older ledgers leave to that."""
    return os.path.relpath(place, folder) if place.startswith(folder + os.sep) else None


def is_still(place: Path, entry: Row) -> bool:
    """Tell whether a pulled file is here as the pull left it."""
    try:
        status = place.lstat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (entry["size"], entry["here_mtime_ns"])


def make_requests(wishes: Iterable[Row]) -> list[list[Row]]:
    """Return the wishes in groups that fit one control frame each."""
    groups: list[list[Row]] = [[]]
    size = 0
    for wish in wishes:
        cost = 400 + sum(150 + 6 * len(str(row[0])) for row in wish["files"])
        cost += sum(10 + 6 * len(path) for facts in wish["attempts"].values() for path in facts["replaced"])
        if groups[-1] and size + cost > REQUEST_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(wish)
        size += cost
    return groups


def parse_results(asked: Sequence[Run], answer: Row) -> list[Row]:
    """Return what the host says became of runs, checked; raise ProtocolError.

    Keys: removed, gone, kind, why and attempt (of one that stays), bytes, unpulled (files that were not pulled and went with it).
    """
    by_id = {run.id: run for run in asked}
    results = []
    rows = answer.get("runs")
    for row in rows if isinstance(rows, list) else []:
        run = by_id.get(str(row.get("run"))) if isinstance(row, dict) else None
        if run is None:
            raise ProtocolError("an answer about runs that nobody asked for")
        size, unpulled, attempt = row.get("bytes"), row.get("unpulled"), row.get("attempt")
        result = {
            "run": run.id,
            "removed": row.get("removed") is True,
            "gone": row.get("gone") is True,
            "bytes": size if isinstance(size, int) and size >= 0 else 0,
            "unpulled": unpulled if isinstance(unpulled, int) and unpulled >= 0 else 0,
            "kind": str(row.get("kind"))[:40] if row.get("why") else None,
            "why": str(row.get("why"))[:500] if row.get("why") else None,
            "attempt": attempt if isinstance(attempt, int) and attempt > 0 else None,
        }
        results.append(result)
    return results


def offer_runs(
    session: Session, offer: Offer, *, dry: bool = False, thorough: bool = False
) -> tuple[list[Row], Row]:
    """Have the host take away what it may of some runs, keep what became of them; return that, and its whole answer.

    A run that a process of this laptop follows or pulls by now is not offered. Raises ProtocolError, ConnectionLost.
    """
    by_id = {run.id: run for run in offer.runs}
    offered = [wish for wish in offer.wishes if not by_id[wish["run"]].in_use()]
    asked = [by_id[wish["run"]] for wish in offered]
    before = {run.id for run in asked if not dry and note_asked(run, offer.place)}
    answer = session.wait(
        session.submit("prune", runs=offered, dry=dry, thorough=thorough, **offer.more), TIDY_SECONDS
    )
    results = parse_results(asked, answer)
    for result in results if not dry else ():
        _note_result(by_id[result["run"]], offer.place, result, asked_before=result["run"] in before)
    return results, answer


def note_asked(run: Run, place: Place) -> bool:
    """Note that a run's removal is asked for; tell whether it was before, by a request whose answer never came."""
    if standing_at(run.read(), place).get("pruning"):
        return True
    keep_standing(run, place, pruning=time.time())
    return False


def _note_result(run: Run, place: Place, result: Row, *, asked_before: bool) -> None:
    """Keep what became of a run on its host.

    One that is not there was removed only if we had asked for that before: a disk may be unmounted for now, or the
    name mean another machine.
    """
    now = time.time()
    if result["removed"] or (result["gone"] and asked_before):
        asked = standing_at(run.read(), place).get("pruning") or now
        keep_standing(run, place, pruned=asked, pruning=None, stays=None)
        return
    why = "it is not there" if result["gone"] else result["why"]
    for_now = result["kind"] in FOR_NOW
    keep_standing(run, place, pruning=None, stays=None if for_now else {"at": now, "why": why})


def is_worth_asking(run: Run, place: Place, now: float) -> bool:
    """Tell whether the host might say something else than last time."""
    stays = standing_at(run.read(), place).get("stays")
    if not stays or now - stays["at"] > ASK_AGAIN_SECONDS:
        return True
    return any(path.stat().st_mtime > stays["at"] for path in _list_proofs(run))


def _list_proofs(run: Run) -> list[Path]:
    """Return the files here that say, or are, what there is of a run at home."""
    patterns = (PULLED, JOURNAL, "attempts/*/ranks/*.log", f"attempts/*/{layout.LAUNCHER_LOG}")
    return [path for pattern in patterns for path in run.folder.glob(pattern)]


def forget_unstarted(runs: Iterable[Run], keep: int = KEEP) -> None:
    """Remove records of runs that never began beyond the `keep` newest of each project, if nothing of worth is in them."""
    projects: dict[Path, list[Run]] = {}
    for run in runs:
        if run.read().get("state") == "not started" and is_empty(run):
            projects.setdefault(run.folder.parent, []).append(run)
    for found in projects.values():
        for run in found[: max(0, len(found) - keep)]:
            shutil.rmtree(run.folder)
            (client_root() / "index" / run.id).unlink(missing_ok=True)


RECORDS = ("*", "attempts/*/*")
"""Where in a run's folder records are written."""
OURS = {"run.json", ".gitignore", MIRROR_LOCK, PULL_LOCK, PULLER_LOCK, RESUME_LOCK}


def is_empty(run: Run) -> bool:
    """Tell whether a run's folder holds its record and nothing that came from a host or a person."""
    for path in run.folder.rglob("*"):
        ours = path.parent == run.folder and path.name in OURS
        if not ours and (path.is_symlink() or not path.is_dir()):
            return False
    return True


def drop_leftovers(folder: Path, *patterns: str) -> None:
    """Remove, among the records of a run or the files that match, those whose writer was killed before it renamed them."""
    for path in (path for pattern in patterns or RECORDS for path in folder.glob(pattern)):
        found = LEFTOVER.search(path.name)
        if found and path.is_file() and not _lives(int(found[1])):
            with contextlib.suppress(OSError):  # they harm nobody
                path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return pid > 0


def forget_missing() -> None:
    """Remove index entries whose run was deleted; where the whole project is away it may be on a disk that comes back."""
    index = client_root() / "index"
    for entry in index.iterdir() if index.is_dir() else ():
        folder = Path(entry.read_text())
        if not folder.is_absolute() or (folder / "run.json").exists():
            continue
        away = not folder.parent.parent.is_dir()
        if not away or time.time() - entry.stat().st_mtime > MISSING_SECONDS:
            entry.unlink(missing_ok=True)
