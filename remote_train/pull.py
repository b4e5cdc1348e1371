"""Bring files of a run home: whole, verified by hash, under a temporary name until then; nothing of yours is lost.

What there is, is asked in `lister.py`; what becomes of each file is in `bringing.py`. The newest checkpoint comes first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.blocks import Fetcher, OwnLine
from remote_train.bringing import Fate, Home, Landing, Pulled, find_base, make_local_error
from remote_train.errors import LocalSpace, PullIncomplete
from remote_train.host.commits import COMMITTED
from remote_train.ledger import PULLED, Ledger, drop_old
from remote_train.listed import choose_latest, make_units
from remote_train.lister import Lister
from remote_train.partial import pulling_alone
from remote_train.staging import find_stage, forget_stage
from remote_train.weights import WeightsMaker, pick_models

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remote_train.blocks import Line
    from remote_train.listed import Row, Unit
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.session import Session

__all__ = ["Pull", "PullWish", "Pulled"]


@dataclass(frozen=True)
class PullWish:
    """Which files, and where to."""

    to: Path | None = None
    match: tuple[str, ...] = ()
    latest: bool = False
    everything: bool = False
    give_up: float | None = None
    keep_last: int | None = None
    """Of the checkpoints only so many of the newest are to be here."""
    limit: float | None = None
    """Bytes per second."""
    weights: bool = False
    """Of the newest checkpoint, or those that match, only the model."""
    dtype: str | None = None
    """What the numbers of weights are converted to: bf16, fp16 or fp32."""
    aside: bool = False
    """Also of an attempt that counts no more: `to` is apart from what is kept of the run."""


class Pull:
    """One `pull` of one attempt."""

    def __init__(self, run: Run, attempt: int, link: HostLink, session: Session, listener: Listener) -> None:
        self.run = run
        self.attempt = attempt
        self.listener = listener
        self.result = Pulled()
        own = OwnLine(run.id, link, session, listener)
        self.fetcher = Fetcher(run.id, attempt, own, link.host.name)
        self.lister = Lister(run, attempt, own, listener)

    def use(self, line: Line) -> None:
        """Go over a line that others use too."""
        self.fetcher.line = self.lister.line = line

    @property
    def session(self) -> Session:
        """The connection in use."""
        return self.fetcher.line.session

    def bring(self, wish: PullWish) -> Pulled:
        """Fetch what is wished for; raise PullIncomplete, VerificationFailed, LocalSpace, ConnectionGivenUp."""
        if wish.weights:
            return self._bring_weights(wish)
        with self._alone(wish) as (landing, home):
            self.fetcher.on_progress = self._tell_progress
            fates = self._bring_units(wish, landing, home)
            for _ in range(landing.tries - 1):
                if wish.latest and set(fates.values()) == {Fate.GONE}:  # another is the newest by now
                    fates = self._bring_units(wish, landing, home)
            self._drop_old(home, wish)
        self._judge(fates)
        return self.result

    def _bring_units(self, wish: PullWish, landing: Landing, home: Home) -> dict[str, Fate]:
        units = self._choose(self.list_files(wish), wish)
        self._tell_left_out()
        self._make_room(home, units)
        fates = {unit.name: landing.bring(unit, lambda: self._look_again(wish)) for unit in units}
        self._mark(landing, home, units)
        return fates

    def _bring_weights(self, wish: PullWish) -> Pulled:
        with self._alone(wish) as (landing, home):
            self.fetcher.on_progress = self._tell_progress
            maker = WeightsMaker(self.fetcher, self.listener)
            units = self._list_committed(wish)
            self._tell_left_out()
            fates = {}
            for unit in units if wish.match and not wish.latest else units[:1]:
                made = maker.make(unit, wish.dtype)
                self._make_room(home, [made])
                fates[made.name] = landing.bring(made, lambda: pick_models(self._list_standing(wish)))
        self._judge(fates)
        return self.result

    def bring_next(self, wish: PullWish, tried: set[tuple[str, int]]) -> bool:
        """Fetch the newest checkpoint that is not here and was not tried; return False when there is none."""
        with self._alone(wish) as (landing, home):
            landing.tries = 1  # whoever writes it again tells so again
            self._drop_old(home, wish)  # after the one before: what goes wrong with it is not about the next
            units = self._list_committed(wish)[: wish.keep_last]
            lacking = (unit for unit in units if not landing.is_whole(unit))
            new = next((unit for unit in lacking if (unit.name, unit.mtime_ns) not in tried), None)
            if new is None:
                return False
            self._make_room(home, [new])
            tried.add((new.name, new.mtime_ns))
            landing.bring(new, lambda: self._list_standing(wish))
        return True

    @contextlib.contextmanager
    def _alone(self, wish: PullWish) -> Iterator[tuple[Landing, Home]]:
        target = wish.to or self.run.files
        with (
            pulling_alone(self.run, self._say_wait, self.fetcher.look) as partials,
            open_top(self.run, find_base(self.run, target)) as top,
        ):
            ledger = Ledger(self.run.folder / PULLED)  # with what the one before us brought
            home = Home(self.run, self.attempt, target, ledger, partials, top, aside=wish.aside)
            landing = self._begin(wish, home)
            try:
                yield landing, home
            finally:
                with contextlib.suppress(OSError):  # its journal says the same
                    home.ledger.fold()

    def _begin(self, wish: PullWish, home: Home) -> Landing:
        line = self.fetcher.line
        if isinstance(line, OwnLine):
            line.give_up = wish.give_up
        self.fetcher.limit = wish.limit
        landing = Landing(home, self.fetcher, self.listener, self.result)
        landing.marks = not wish.match and not wish.everything
        return landing

    def _mark(self, landing: Landing, home: Home, units: Sequence[Unit]) -> None:
        """Of files that were named one by one, find out which checkpoints they make: the globs do not say it."""
        rows = [row for unit in units for row in unit.rows if row.get("state") == COMMITTED]
        found = [home.ledger.find(home.target / row["path"]) for row in rows]
        if not landing.marks and any(entry is not None and "checkpoint" not in entry for entry in found):
            for unit in self.lister.list_units():
                landing.mark(unit)

    def _say_wait(self) -> None:
        self.listener.tell(
            "note", text=f"another pull of {self.run.id} is under way here; waiting for its end"
        )

    def _tell_progress(self, come: int, size: int) -> None:
        self.listener.tell("pulling", run=self.run.id, bytes=come, size=size)

    def list_files(self, wish: PullWish) -> list[Row]:
        """Return the rows to bring; of checkpoints those that are whole."""
        rows = self._list_all(wish)
        return choose_latest(rows) if wish.latest else rows

    def _list_all(self, wish: PullWish) -> list[Row]:
        if wish.everything or wish.match:
            return self.lister.list_all([] if wish.everything else list(wish.match))
        return self.lister.list_checkpoints()

    def list_remaining(self) -> list[Row]:
        """Return the files of the run that are not here, as a glance at the host shows it."""
        ledger = Ledger(self.run.folder / PULLED)
        rows = self.lister.list_now([], sure=False)
        return [row for row in rows if not ledger.is_here(row, self.run.files / row["path"])]

    def _look_again(self, wish: PullWish) -> list[Unit]:
        return _make_units(self._list_all(wish), wish) + self.lister.settling + self.lister.left_out

    def _list_standing(self, wish: PullWish) -> list[Unit]:
        return self._list_committed(wish) + self.lister.settling + self.lister.left_out

    def _list_committed(self, wish: PullWish) -> list[Unit]:
        return make_units(self.lister.list_checkpoints(wish.match))

    @staticmethod
    def _choose(rows: Sequence[Row], wish: PullWish) -> list[Unit]:
        """Return what is brought together, the newest first."""
        units = _make_units(rows, wish)
        return units if wish.keep_last is None else units[: wish.keep_last]

    def _tell_left_out(self) -> None:
        """Name the checkpoints that are not whole, and how to bring them all the same where they stay so."""
        for unit in self.lister.settling:
            text = f"{unit.name} is being written and is not brought yet; pull again in a moment"
            self.listener.tell("note", text=text)
        for unit in self.lister.left_out:
            text = f"{unit.name} is not whole and is not brought; --match '{unit.glob}' brings it as it is"
            self.listener.tell("note", text=text)

    def _make_room(self, home: Home, units: Sequence[Unit]) -> None:
        """Remove what earlier pulls left and nobody wants, and see that there is space for what is wanted."""
        keep_wanted(home, units)
        rows = [row for unit in units for row in unit.rows]
        need = sum(row["size"] for row in rows if not home.ledger.is_here(row, home.target / row["path"]))
        try:
            home.target.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(home.target).free
            need -= measure_begun(home)
        except OSError as error:
            raise make_local_error(home.target, error) from error
        if need > free:
            raise LocalSpace(
                f"{need:,} bytes are to come, and {home.target} has {free:,} free",
                hint="free space there, or pull elsewhere with --to, or less with --latest",
                need=need,
                have=free,
            )

    def _drop_old(self, home: Home, wish: PullWish) -> None:
        if wish.keep_last is not None:
            try:
                below = find_base(home.run, home.target), home.top
                gone = drop_old(home.ledger, home.target, wish.keep_last, below)
            except OSError as error:
                raise make_local_error(Path(error.filename or home.target), error) from error
            for path in gone:
                self.listener.tell("dropped", path=str(path))

    def _judge(self, fates: dict[str, Fate]) -> None:
        """Raise what is wrong with what came of it."""
        if self.result.kept:
            raise PullIncomplete(
                f"{', '.join(self.result.kept[:5])}: already here with other contents, left as they are",
                hint="pull to another folder with --to, or move them away",
            )
        gone = [name for name, fate in fates.items() if fate is Fate.GONE]
        if gone and len(gone) == len(fates):
            raise PullIncomplete(
                f"{', '.join(gone[:5])}: removed on the host before it could be read; nothing came",
                hint="run the same command again for what is there now",
            )
        missing = [name for name, fate in fates.items() if fate is Fate.CHANGED]
        missing += [] if fates else [unit.name for unit in self.lister.settling]
        if missing:
            raise PullIncomplete(
                f"{', '.join(missing[:5])} changed all the time while being read",
                hint="run the same command again in a moment",
            )


@contextlib.contextmanager
def open_top(run: Run, base: Path) -> Iterator[int]:
    """Open the folder that all of a pull lands below; one that `--to` names is made. Raises what a user is told."""
    try:
        if base != run.folder:
            base.mkdir(parents=True, exist_ok=True)
        top = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise make_local_error(base, error) from error
    try:
        yield top
    finally:
        os.close(top)


def _make_units(rows: Sequence[Row], wish: PullWish) -> list[Unit]:
    return make_units(rows, single=wish.everything or (bool(wish.match) and not wish.latest))


def keep_wanted(home: Home, units: Sequence[Unit]) -> None:
    """Remove what earlier pulls left of files that are not to be brought."""
    stage = find_stage(home.run)
    if stage is not None and all(home.target / unit.name != stage[0] for unit in units):
        forget_stage(home.run)
        stage = None
    rows = {home.target / row["path"]: row for unit in units for row in unit.rows}
    if stage is not None:
        inside = {place: row for place, row in rows.items() if place.is_relative_to(stage[0])}
        rows |= {stage[1] / place.relative_to(stage[0]): row for place, row in inside.items()}

    def is_wanted(head: Row) -> bool:
        row, begun = rows.get(Path(head["place"])), head["identity"]
        if row is None or head.get("attempt") != home.attempt:
            return False
        return bool((begun["size"], begun["mtime_ns"]) == (row["size"], row["mtime_ns"]))

    home.partials.keep_only(is_wanted)


def measure_begun(home: Home) -> int:
    """Return how many bytes of what is to come are here already; raise OSError."""
    head, stage = home.partials.find_begun(), find_stage(home.run)
    begun = {Path(head["partial"])} if head is not None else set()
    staged = {path for path in stage[1].rglob("*") if path.is_file()} if stage is not None else set()
    return sum(path.stat().st_size for path in begun | staged if path.exists())
