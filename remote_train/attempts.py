"""The attempts of one run, as run.json holds them: which ran where, which counts, and where one went on from another.

Attempt numbers are fencing tokens: only the highest counts. Before attempt K+1 is started, it is recorded, and K is
marked `superseded` where it may still run; from then on nothing that K does changes the run. Pure, but for `update_newest` and `keep_standing`.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from remote_train.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.records import Run

Record = dict[str, Any]
Place = tuple[str, str | None]
"""A host and the state folder on it that was asked for."""


OVER = ("ended", "lost", "not started")
"""States of an attempt that is known not to run."""


@dataclass(frozen=True)
class Hop:
    """One attempt that went on from another."""

    attempt: int
    host: str
    from_attempt: int
    from_host: str
    step: int | None = None
    """Of the checkpoint, where it is known."""
    checkpoint: str | None = None
    """What it went on from; None: it began anew."""
    reason: str | None = None
    wall_time: float | None = None

    def as_json(self) -> Record:
        """Give every field."""
        return asdict(self)


def newest_of(record: Mapping[str, Any]) -> int:
    """Return the number of the attempt that counts."""
    return int(record["attempts"][-1]["attempt"])


def item_of(record: Mapping[str, Any], number: int) -> Record:
    """Return what run.json says of one attempt; raise UsageError when there is none of that number."""
    for item in record["attempts"]:
        if item["attempt"] == number:
            return dict(item)
    numbers = ", ".join(str(item["attempt"]) for item in record["attempts"])
    raise UsageError(f"there is no attempt {number} of {record.get('run')}", hint=f"it has {numbers}")


def place_of(record: Mapping[str, Any], number: int) -> Place:
    """Return where an attempt ran; records from before there were several say it of the run alone."""
    item = item_of(record, number)
    host = item.get("host") or record["host"]
    if "state_dir" in item:
        return host, item["state_dir"]
    return host, record.get("state_dir") if host == record["host"] else None


def places_of(record: Mapping[str, Any]) -> dict[Place, list[int]]:
    """Return the places of a run and the attempts that ran there, the newest place last."""
    found: dict[Place, list[int]] = {}
    for item in record["attempts"]:
        place = place_of(record, item["attempt"])
        found[place] = [*found.pop(place, []), item["attempt"]]
    return found


def standing_at(record: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """Return where is kept what became of the run's files at a place (`pruned`, `pruning`, `stays`).

    At the newest attempt's it is the record itself, else the entry of the last attempt that ran there.
    """
    numbers = places_of(record).get(place, [])
    return record if newest_of(record) in numbers or not numbers else item_of(record, numbers[-1])


def keep_standing(run: Run, place: Place, **changes: Any) -> Record:  # noqa: ANN401  (JSON values)
    """Keep what became of the run's files at a place."""

    def choose(record: Record) -> Record:
        if standing_at(record, place) is record:
            return changes
        return {"attempts": change_item(record, places_of(record)[place][-1], **changes)}

    return run.change(choose)


def is_superseded(record: Mapping[str, Any], number: int) -> bool:
    """Tell whether an attempt counts no more."""
    return number < newest_of(record)


def are_left(record: Mapping[str, Any], place: Place) -> bool:
    """Tell whether none of the attempts at a place counts or runs, for all that is known, and there are any."""
    found = [item_of(record, number) for number in places_of(record).get(place, [])]
    known = [item.get("superseded") or item.get("state", record["state"]) in OVER for item in found]
    return bool(known) and all(known)


def update_newest(run: Run, number: int, **changes: Any) -> Record:  # noqa: ANN401  (JSON values)
    """Change keys of run.json by what is known of one attempt, unless it counts no more; return the record."""
    return run.change(lambda record: {} if is_superseded(record, number) else changes)


def counts_no_more(run: Run, number: int) -> bool:
    """Tell whether an attempt of a run whose records are still here has been superseded."""
    return not run.is_gone() and is_superseded(run.read(), number)


def change_item(record: Mapping[str, Any], number: int, **changes: Any) -> list[Record]:  # noqa: ANN401  (JSON values)
    """Return `attempts` with keys of one of them changed; a value of None takes the key away."""
    items = [dict(item) for item in record["attempts"]]
    for item in items:
        if item["attempt"] == number:
            item.update(changes)
            for key in [key for key, value in changes.items() if value is None]:
                del item[key]
    return items


def list_hops(record: Mapping[str, Any]) -> list[Hop]:
    """Return where the run went on, oldest first."""
    items = record["attempts"]
    return [_make_hop(record, before, item) for before, item in itertools.pairwise(items)]


def _make_hop(record: Mapping[str, Any], before: Record, item: Record) -> Hop:
    checkpoint = item.get("checkpoint") or {}
    return Hop(
        attempt=item["attempt"],
        host=place_of(record, item["attempt"])[0],
        from_attempt=before["attempt"],
        from_host=place_of(record, before["attempt"])[0],
        step=checkpoint.get("step"),
        checkpoint=checkpoint.get("unit"),
        reason=item.get("reason"),
        wall_time=item.get("created"),
    )
