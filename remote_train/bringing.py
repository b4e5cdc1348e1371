"""Where files of a run land on this laptop: each whole, verified and synced before it has its name, and nothing of yours is lost.

A folder that is a checkpoint and new here takes its name in one rename, when all of it is here and still of one version;
one that is here already is brought up to date file by file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from remote_train.errors import LocalSpace, PullIncomplete
from remote_train.fencing import publishing
from remote_train.host.commits import COMMITTED
from remote_train.host.disk import FAILING
from remote_train.host.trees import open_parent
from remote_train.landing import refuse_links
from remote_train.ledger import make_mark
from remote_train.naming import Held, Taken, publish
from remote_train.records import choose_hint
from remote_train.refusals import NoSuchFile, SourceChanged
from remote_train.staging import Stage, forget_stage, open_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from remote_train.blocks import Fetcher
    from remote_train.ledger import Ledger
    from remote_train.listed import Row, Unit
    from remote_train.listener import Listener
    from remote_train.partial import Partials
    from remote_train.records import Run

TRIES = 3


@dataclass
class Pulled:
    """What a pull brought."""

    files: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    bytes: int = 0
    kept: list[str] = field(default_factory=list)
    """Files here that are not what an earlier pull brought: left as they are."""


class Fate(Enum):
    """What came of bringing a file, or all files of a checkpoint."""

    HERE = "here"
    CHANGED = "changed"
    GONE = "gone"
    KEPT = "kept"


@dataclass(frozen=True)
class Home:
    """What landing writes to: the run's records, and the folder that files are brought to."""

    run: Run
    attempt: int
    target: Path
    ledger: Ledger
    partials: Partials
    top: int
    """The open folder below which all of it lies (`find_base`)."""
    aside: bool = False
    """What lands there may be of an attempt that counts no more."""

    @contextlib.contextmanager
    def open_parent(self, place: Path) -> Iterator[int]:
        """Open the folder of a place, made where it is missing; raise OSError where the way there is not by folders alone."""
        base = find_base(self.run, self.target)
        refuse_links(base, place)  # which says where the link is; one that comes later is not followed either
        folder, _ = open_parent(self.top, place.relative_to(base).as_posix(), make=0o777)
        try:
            yield folder
        finally:
            os.close(folder)

    def publishing(self) -> AbstractContextManager[None]:
        """Be the one who gives a file its name; raise PullIncomplete when the attempt counts no more."""
        return contextlib.nullcontext() if self.aside else publishing(self.run, self.attempt)


def find_base(run: Run, target: Path) -> Path:
    """Return the folder below which a pull goes through no link: the run's, or DIR of `--to DIR`."""
    return run.folder if target == run.files else target


class Landing:
    """Files and checkpoints of one attempt coming to one folder."""

    def __init__(self, home: Home, fetcher: Fetcher, listener: Listener, result: Pulled) -> None:
        self.tries = TRIES
        self.marks = False
        """What is brought are the project's checkpoints, each all of it: what a run may go on from, and what may be too old."""
        self._home = home
        self._fetcher = fetcher
        self._listener = listener
        self._result = result

    def is_whole(self, unit: Unit) -> bool:
        """Tell whether all of it is here as it is on the host."""
        target = self._home.target
        return all(self._home.ledger.is_here(row, target / row["path"]) for row in unit.rows)

    def bring(self, unit: Unit, look_again: Callable[[], list[Unit]]) -> Fate:
        """Bring a checkpoint, or a file; raise what a user is told when this machine does not take it.

        `look_again` lists what the host has now, whole or not.
        """
        target = self._home.target
        if self.is_whole(unit):
            self._result.unchanged += [target / row["path"] for row in unit.rows]
            if self.marks:
                self.mark(unit)
            return Fate.HERE
        if len(unit.rows) == 1 and not unit.is_folder:
            return self._bring_alone(unit, look_again)
        return self._bring_together(unit, look_again)

    def mark(self, unit: Unit) -> None:
        """Keep that a checkpoint of the project is here in one version, if it is."""
        if _is_checkpoint(unit) and self.is_whole(unit):
            self._home.ledger.mark(unit.rows, self._home.target, unit.name)

    def _bring_alone(self, unit: Unit, look_again: Callable[[], list[Unit]]) -> Fate:
        """Bring a single file; a checkpoint in exactly the version that is whole, looking again when it is another by now."""
        for _ in range(self.tries):
            row = unit.rows[0]
            made = {**row, **self._make_mark(unit)}
            fate = self._bring_row(made, self._home.target / row["path"], self._home.ledger)
            if fate is not Fate.CHANGED or "state" not in row:
                return fate
            now = self._find_again(unit, look_again)
            if now is None:
                return Fate.GONE
            if now.state != COMMITTED:
                break
            unit = now
        return Fate.CHANGED

    def _find_again(self, unit: Unit, look_again: Callable[[], list[Unit]]) -> Unit | None:
        """Return a checkpoint as it is now; None, and tell so, when it is on the host no more."""
        now = next((other for other in look_again() if other.name == unit.name), None)
        if now is None:
            self._say_gone(unit.name)
        return now

    def _bring_together(self, unit: Unit, look_again: Callable[[], list[Unit]]) -> Fate:
        """Bring files that belong together, again when one of them has changed before all were here."""
        for _ in range(self.tries):
            stage = self._open_stage(unit)
            fates = {self._bring_staged(row, stage) for row in unit.rows}
            now = self._find_again(unit, look_again)
            if now is None:
                forget_stage(self._home.run)
                return Fate.GONE
            if Fate.KEPT in fates:
                return Fate.KEPT
            if now.state != COMMITTED:
                break
            if now.rows == unit.rows and fates == {Fate.HERE}:
                self._arrive(unit, stage)
                return Fate.HERE
            unit = now
        forget_stage(self._home.run)
        return Fate.CHANGED

    def _make_mark(self, unit: Unit) -> Row:
        """Return what the ledger says of each file of a checkpoint that is here."""
        if not self.marks or not _is_checkpoint(unit):
            return {}
        return {"unit": unit.name, "checkpoint": make_mark(unit.rows)}

    def _open_stage(self, unit: Unit) -> Stage | None:
        """Return where a folder that is new here is brought to, None for what is brought up to date file by file."""
        place = self._home.target / unit.name
        if not unit.is_folder:
            return None
        if os.path.lexists(place):
            forget_stage(self._home.run, place)
            return None
        try:
            with self._home.open_parent(place) as parent:
                return open_stage(self._home.run, place, parent)
        except OSError as error:
            raise make_local_error(place, error) from error

    def _bring_staged(self, row: Row, stage: Stage | None) -> Fate:
        place = self._home.target / row["path"]
        if stage is None:
            return self._bring_row(row, place, self._home.ledger)
        return self._bring_row(row, stage.folder / place.relative_to(stage.place), stage.ledger)

    def _arrive(self, unit: Unit, stage: Stage | None) -> None:
        """Give a folder its name, and tell that a checkpoint is here."""
        place = self._home.target / unit.name
        if stage is not None:
            try:
                with self._home.publishing():
                    places = stage.publish(self._home.ledger, self._make_mark(unit))
            except OSError as error:
                raise make_local_error(place, error) from error
            for path in places:
                self._note_arrival(path, self._home.ledger.entries[str(path)], unit=unit.name)
        elif self.marks:
            self.mark(unit)
        files, size = len(unit.rows), unit.size
        self._listener.tell("arrived", unit=unit.name, path=str(place), files=files, size=size)

    def _note_arrival(self, place: Path, entry: Row, **more: Any) -> None:  # noqa: ANN401  (JSON values)
        self._result.files.append(place)
        self._listener.tell("pulled", path=str(place), size=entry["size"], sha256=entry["sha256"], **more)

    def _say_gone(self, name: str) -> None:
        self._listener.tell("note", text=f"{name} was removed on the host before it could be read")

    def _bring_row(self, row: Row, place: Path, ledger: Ledger) -> Fate:
        try:
            return self._try_row(row, place, ledger)
        except LocalSpace:
            forget_stage(self._home.run)
            raise
        except OSError as error:
            told = make_local_error(place, error)
            if isinstance(told, LocalSpace):
                forget_stage(self._home.run)
            raise told from error

    def _try_row(self, row: Row, place: Path, ledger: Ledger) -> Fate:
        staged = ledger is not self._home.ledger
        if ledger.is_here(row, place):
            if not staged:
                self._result.unchanged.append(place)
            return Fate.HERE
        held = Held(place)
        if not ledger.may_replace(place, held.sha256):
            return self._keep(place, ledger)
        for _ in range(2 if "state" in row else self.tries):  # once for what is left here of another version
            try:
                entry = self._fetch(row, place, ledger, held)
            except SourceChanged:
                continue
            except Taken:
                return self._keep(place, ledger)
            except NoSuchFile:
                self._say_gone(row["path"])
                return Fate.GONE
            if not staged:
                self._note_arrival(place, entry)
            return Fate.HERE
        return Fate.CHANGED

    def _keep(self, place: Path, ledger: Ledger) -> Fate:
        self._result.kept.append(self._describe_kept(place, ledger))
        return Fate.KEPT

    @staticmethod
    def _describe_kept(place: Path, ledger: Ledger) -> str:
        """Return which file is left as it is; where upper and lower case are one, under which name it was brought."""
        other = ledger.find_same(place)
        return str(place) if other is None else f"{place} (on this disk the same file as {other.name})"

    def _fetch(self, row: Row, place: Path, ledger: Ledger, held: Held) -> Row:
        of = {"path": row["path"], "attempt": self._home.attempt}  # which `retention.py` wants to know
        with (
            self._home.open_parent(place) as folder,
            self._home.partials.writing(place, folder, of) as partial,
        ):
            source = self._fetcher.fetch(row["path"], partial, row if "state" in row else None)
            os.fsync(partial.file.fileno())
            here = {"here_mtime_ns": os.fstat(partial.file.fileno()).st_mtime_ns}
            made: Row = {
                key: row[key] for key in ("weights_of", "saved_ns", "unit", "checkpoint") if key in row
            }
            entry = {**source, **here, **of, **made}
            with self._home.publishing():
                held = held.look_again(ledger)
                entry["before"] = held.sha256
                publish(partial, held, ledger, entry)
            os.fsync(folder)
        self._result.bytes += source["size"]
        return entry


def _is_checkpoint(unit: Unit) -> bool:
    """Tell whether the host vouches for all of it, and it is no part of what it has."""
    return all(row.get("state") == COMMITTED and "weights_of" not in row for row in unit.rows)


def make_local_error(place: Path, error: OSError) -> LocalSpace | PullIncomplete:
    """Return what a user is told when this machine would not take a file."""
    words = f"{place}: {error.strerror or error}"
    if error.errno in (*FAILING, errno.EFBIG, errno.EMFILE, errno.ENFILE):
        return LocalSpace(words, hint=choose_hint(error), path=str(place))
    return PullIncomplete(words, hint="pull to another folder with --to")
