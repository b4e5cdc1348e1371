"""A folder that is brought whole: its files come to a hidden folder beside its place, which takes its name in one rename.

So whoever looks for `checkpoint-500/` finds all of it or none. What is in the hidden folder stands in a ledger of its
own, so that a pull that was killed is gone on with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.host.durable import sync_folder
from remote_train.ledger import JOURNAL_ENDING, Ledger
from remote_train.partial import is_partial_of, name_partial
from remote_train.records import read_json, write_json

if TYPE_CHECKING:
    from remote_train.ledger import Row
    from remote_train.records import Run

STAGED, PLACE = "staged.json", "staging.json"


class Stage:
    """The hidden folder of one that is on its way."""

    def __init__(self, run: Run, place: Path, folder: Path) -> None:
        self.place = place
        self.folder = folder
        self.ledger = Ledger(run.folder / STAGED)
        self._run = run

    def publish(self, ledger: Ledger, mark: Row) -> list[Path]:
        """Give the folder its name, and each entry what `mark` says; return where its files are now. Raises OSError."""
        moved = {
            self.place / Path(name).relative_to(self.folder): {**entry, **mark}
            for name, entry in self.ledger.entries.items()
            if Path(name).is_relative_to(self.folder)
        }
        ledger.note(moved)
        try:
            self.folder.rename(self.place)
        except OSError:  # a folder of yours has come there
            ledger.drop([path for path in moved if not path.exists()])
            raise
        sync_folder(str(self.place.parent))
        forget_stage(self._run)
        return list(moved)


def find_stage(run: Run) -> tuple[Path, Path] | None:
    """Return the place and the hidden folder of what an earlier pull began."""
    found = read_json(run.folder / PLACE)
    place, folder = Path(str(found.get("place", ""))), Path(str(found.get("folder", "")))
    return (place, folder) if place.is_absolute() and is_partial_of(folder, place) else None


def open_stage(run: Run, place: Path, parent: int) -> Stage:
    """Return the stage for a place, in its open parent folder: as an earlier pull left it, or new. Raises OSError."""
    found = find_stage(run)
    if found is not None and found[0] == place and found[1].is_dir() and not found[1].is_symlink():
        return Stage(run, *found)
    forget_stage(run)
    folder = name_partial(place)
    write_json(run.folder / PLACE, {"place": str(place), "folder": str(folder)})
    os.mkdir(
        folder.name, dir_fd=parent
    )  # as the user's own folders are: it becomes the one that was asked for
    return Stage(run, place, folder)


def forget_stage(run: Run, place: Path | None = None) -> None:
    """Remove a hidden folder, or only one for this place, and what is known of it; what stays the next pull removes."""
    found = find_stage(run)
    if place is not None and (found is None or found[0] != place):
        return
    if found is not None and found[1].is_dir() and not found[1].is_symlink():
        shutil.rmtree(found[1], ignore_errors=True)
    with contextlib.suppress(OSError):
        if found is not None and found[1].is_dir():
            return
        (run.folder / STAGED).with_suffix(JOURNAL_ENDING).unlink(missing_ok=True)
        (run.folder / STAGED).unlink(missing_ok=True)
        (run.folder / PLACE).unlink(missing_ok=True)
