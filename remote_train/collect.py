"""`gc`: what of our runs a host may let go, what else lies there for nothing, and what it says it freed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempts import OVER, Place, newest_of, place_of, places_of, standing_at
from remote_train.config.hosts_file import read_hosts
from remote_train.config.project import find_project, read_project
from remote_train.errors import ConnectionLost, ProtocolError, RemoteTrainError, UsageError, exit_code_of
from remote_train.find import make_link
from remote_train.host import layout
from remote_train.kept_package import drop_packages
from remote_train.query import keep_state, name_newest
from remote_train.retention import (
    Offer,
    forget_missing,
    forget_unstarted,
    make_requests,
    make_wish,
    offer_runs,
    pick_old,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.session import Session
    from remote_train.transport import Ask

FREED = ("starts", "leftovers", "data", "persist", "envs", "incoming", "packages", "blobs", "agents", "trash")

Row = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What `gc` was asked for."""

    hosts: tuple[str, ...] = ()
    keep: int = 10
    dry: bool = False
    data: bool = False
    """Also data folders that were used lately, but by no run that is under way."""
    persist: str | None = None
    """The project whose persistent folders are to go."""
    hosts_file: Path | None = None


def choose_persist(ask: Ask | None, *, sure: bool) -> str:
    """Return the project whose persistent folders are to go, this one; raise UsageError unless that is meant."""
    place = find_project(Path.cwd(), Path.home())
    spec = read_project(place.root)
    if not sure and ask is None:
        raise UsageError(
            f"--persist removes what runs of {spec.project} have downloaded, and nothing brings it back",
            hint="--dry-run shows how much it is, --yes removes it",
        )
    places = ", ".join(spec.persist) or "folders of older versions of the project"
    if not sure and ask is not None and not ask(f"remove {places} of {spec.project} from hosts?"):
        raise UsageError("nothing was removed")
    return spec.project


def clean_hosts(wish: Wish, runs: Sequence[Run], ask: Ask | None) -> Iterable[Row]:
    """Clean each host in turn and yield what became of it; then forget records here that lead nowhere."""
    for place in choose_places(wish, runs):
        yield _clean_place(place, wish, runs, ask)
    if not wish.dry:
        forget_unstarted(runs)
        forget_missing()
        drop_packages()


def choose_places(wish: Wish, runs: Sequence[Run]) -> list[Place]:
    """Return hosts and state folders: those named, else those of the runs, else the default ones; this machine if used."""
    records = [run.read() for run in runs]
    used = [
        place
        for record in records
        for place in places_of(record)
        if not standing_at(record, place).get("pruned")
    ]
    if wish.hosts:
        named = [place for place in used if place[0] in wish.hosts]
        named += [(name, None) for name in wish.hosts if name not in dict(named)]
        return list(dict.fromkeys(named))
    places = used or [(name, None) for name in read_hosts(wish.hosts_file).default]
    if Path(layout.default_root()).is_dir():
        places.append(("local", None))
    return list(dict.fromkeys(places))


def _clean_place(place: Place, wish: Wish, runs: Sequence[Run], ask: Ask | None) -> Row:
    name, state_dir = place
    row: Row = {"host": name, "dry_run": wish.dry, "trouble": None, "exit_code": 0}
    try:
        link = make_link(name, state_dir, wish.hosts_file, ask, Path.cwd())
        here = [run for run in runs if is_of(run, name, link.host.state_dir)]
        return {**row, **clean_host(link, here, wish)}
    except UsageError:
        if wish.hosts:
            raise
        return {**row, "trouble": f"no host is named {name} any more", "exit_code": UsageError.exit_code}
    except (RemoteTrainError, ConnectionLost) as error:
        return {**row, "trouble": str(error), "exit_code": exit_code_of(error)}


def is_of(run: Run, host: str, state_dir: str | None) -> bool:
    """Tell whether a run is on this host, in this state folder."""
    return (host, state_dir) in places_of(run.read())


def clean_host(link: HostLink, runs: Sequence[Run], wish: Wish) -> Row:
    """Return `runs` (what became of each older one), `freed` (bytes by kind), `before` and `after` (bytes in total).

    `data` and `persist` list what of these is there, and whether it went.
    """
    session = link.connect()
    try:
        place = (link.host.name, link.host.state_dir)
        for run in runs:
            record = run.read()
            if record["state"] not in OVER and place_of(record, newest_of(record)) == place:
                keep_state(run, session.request("state", **name_newest(run)))
        old = pick_old(runs, *place, wish.keep)
        return _ask(session, place, [run for run in old if not run.in_use()], wish)
    finally:
        session.close()


def _ask(session: Session, place: Place, old: Sequence[Run], wish: Wish) -> Row:
    results: list[Row] = []
    answer: Row = {}
    newest = {run.id: newest_of(run.read()) for run in old}
    groups = make_requests(make_wish(run, place) for run in old)
    for number, wishes in enumerate(groups, 1):
        last = number == len(groups)
        more = {"data": wish.data, "persist": wish.persist} if last else {}
        offer = Offer(place, wishes, old, more)
        found, answer = offer_runs(session, offer, dry=wish.dry, thorough=last)
        results += found
    return {
        "runs": [{**result, "hint": make_hint(result, newest[result["run"]])} for result in results],
        **parse_counts(answer, results),
        "data": answer.get("data") or [],
        "persist": answer.get("persist") or [],
    }


def parse_counts(answer: Row, results: Iterable[Row]) -> Row:
    """Return what was freed and counted, checked; raise ProtocolError for what are no numbers."""
    said = answer.get("freed") or {}
    if not isinstance(said, dict) or not all(isinstance(size, int) for size in said.values()):
        raise ProtocolError("an answer without the bytes that were freed")
    freed = {kind: said[kind] for kind in FREED if said.get(kind)}
    gone = sum(result["bytes"] for result in results if result["removed"])
    freed = {"runs": gone, **freed} if gone else freed
    totals = {}
    for key in ("before", "after"):
        total = (answer.get(key) or {}).get("total")
        totals[key] = total if isinstance(total, int) else None
    return {"freed": freed, **totals}


def make_hint(result: Row, newest: int) -> str | None:
    """Return the command that helps a run that stays; what an older attempt made comes to a folder apart."""
    kind, attempt = result["kind"], result["attempt"] or newest
    if kind not in {"checkpoint", "output"}:
        return None
    older = f" --attempt {attempt}" if attempt != newest else ""
    apart = " --to DIR" if older and kind == "checkpoint" else ""
    return f"remote-train {'pull' if kind == 'checkpoint' else 'logs'}{older}{apart} {result['run']}"
