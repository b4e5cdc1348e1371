"""What a run can go on from: the newest checkpoint that is whole, here or on the host of an older attempt.

Newest is that of the highest attempt, then the one that was changed last. Of two copies of one the host's is taken:
it need not travel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from remote_train.errors import UsageError
from remote_train.host.commits import COMMITTED
from remote_train.host.containers import check_file
from remote_train.host.files import CHECKPOINTS
from remote_train.ledger import PULLED, read_ledger
from remote_train.listed import make_units
from remote_train.lister import read_listing
from remote_train.mirror import hash_file
from remote_train.refusals import NoSuchFile
from remote_train.retention import is_still
from remote_train.saving import read_step_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from remote_train.records import Run
    from remote_train.session import Session

FILE_MODE = 0o644
MOST_HOPS = 3
"""So often a run that is lost goes on from one checkpoint."""
TOGETHER_NS = 10_000_000_000
"""Files that one save writes are not further apart."""
KNOWN = {"path", "attempt", "size", "mtime_ns", "sha256", "here_mtime_ns", "unit", "checkpoint"}
"""What the ledger of pulls says of a file that can be put back; older versions did not say all of it."""

Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """One file of a checkpoint; `place` is where it lies here, None on its host."""

    path: str
    size: int
    mtime_ns: int
    sha256: str | None
    place: Path | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A unit of files that an attempt has written, whole."""

    unit: str
    attempt: int
    files: tuple[File, ...]

    @property
    def mtime_ns(self) -> int:
        """When it was changed last."""
        return max(file.mtime_ns for file in self.files)

    @property
    def is_here(self) -> bool:
        """Tell whether it lies on this laptop."""
        return all(file.place is not None for file in self.files)

    def make_rows(self) -> tuple[Row, ...]:
        """Return its files as a plan restores them."""
        source = None if self.is_here else self.attempt
        return tuple(
            {
                "path": file.path,
                "mode": FILE_MODE,
                "size": file.size,
                "sha256": file.sha256,
                "attempt": source,
            }
            for file in self.files
        )

    def as_record(self, step: int | None) -> Row:
        """Return it as run.json keeps it."""
        hashes = {file.path: file.sha256 for file in self.files}
        return {"unit": self.unit, "attempt": self.attempt, "sha256s": hashes, "step": step}


class NothingGained(UsageError):
    """To go on elsewhere now would throw away what the last attempt may still be at, or has failed the same way before."""


def refuse_anew(run: str, host: str) -> NothingGained:
    """Return why a run that may still go on is not begun anew elsewhere."""
    return NothingGained(
        f"{run} has no checkpoint to go on from, and may still run on {host}: it would begin anew",
        hint=f"wait for {host}, or begin anew all the same with `remote-train resume {run} --anew`",
    )


def check_progress(record: Row, checkpoint: Checkpoint | None) -> None:
    """Raise NothingGained when the last attempts all went on from this checkpoint and were lost before they wrote another."""
    source = checkpoint.attempt if checkpoint else None
    hops = [item.get("checkpoint") or {} for item in record["attempts"][1:]]
    if len(hops) >= MOST_HOPS and all(hop.get("attempt") == source for hop in hops[-MOST_HOPS:]):
        raise NothingGained(
            f"{record['run']} was lost {MOST_HOPS} times without a newer checkpoint than before"
        )


def list_beside(chosen: Checkpoint, found: Iterable[Checkpoint]) -> list[str]:
    """Return the files that were written beside a checkpoint of one file and may belong to it: no others of its series."""
    if len(chosen.files) > 1 or chosen.unit != chosen.files[0].path:
        return []
    names = {
        other.unit
        for other in found
        if other.attempt == chosen.attempt
        and abs(other.mtime_ns - chosen.mtime_ns) < TOGETHER_NS
        and PurePosixPath(other.unit).parent == PurePosixPath(chosen.unit).parent
        and _name_series(other.unit) != _name_series(chosen.unit)
    }
    return sorted(names)


def _name_series(path: str) -> str:
    return re.sub(r"\d+", "", path)


def choose_newest(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """Return the one to go on from; one that is here only if all of it still has the hash it came with."""
    ordered = sorted(found, key=lambda item: (item.attempt, item.mtime_ns, not item.is_here), reverse=True)
    return next((item for item in ordered if not item.is_here or all(map(_is_sound, item.files))), None)


def _is_sound(file: File) -> bool:
    """Tell whether a file here is what was brought, and is not half of a checkpoint that was brought as it was."""
    try:
        sound = file.place is not None and check_file(str(file.place)) is not False
        return sound and file.place is not None and hash_file(file.place) == file.sha256
    except OSError:
        return False


def list_here(run: Run) -> Iterator[Checkpoint]:
    """Yield the checkpoints that were pulled and of which every file is here as it came, all of one version."""
    units: dict[tuple[Path, int, str, str, int], list[File]] = {}
    for place, entry in read_ledger(run.folder / PULLED).items():
        if not isinstance(entry, dict) or not entry.keys() >= KNOWN or not is_still(Path(place), entry):
            continue
        path, mark = entry["path"], entry["checkpoint"]
        version = entry["attempt"], entry["unit"], mark["digest"], mark["files"]
        file = File(path, entry["size"], entry["mtime_ns"], entry["sha256"], Path(place))
        units.setdefault((Path(place.removesuffix(path)), *version), []).append(file)
    for (_, attempt, unit, _, count), files in units.items():
        if len(files) == count:
            yield Checkpoint(unit, attempt, tuple(sorted(files, key=lambda file: file.path)))


def name_here(run: Run) -> list[str]:
    """Return the files of the newest checkpoint that is here, whichever attempt made it; nobody has looked into them."""
    newest = max(list_here(run), key=lambda item: (item.attempt, item.mtime_ns), default=None)
    return [str(file.place) for file in newest.files] if newest is not None else []


def list_there(session: Session, run: Run, attempt: int, globs: Sequence[str]) -> list[Checkpoint]:
    """Return what an attempt has left on its host, whole; [] where its files are gone. Raises PullIncomplete, ProtocolError, ConnectionLost."""
    asked = {"run": run.id, "attempt": attempt, "globs": list(globs or CHECKPOINTS), "checkpoints": True}
    try:
        units = make_units(read_listing(session, asked))
    except NoSuchFile:
        return []
    return [
        Checkpoint(unit.name, attempt, tuple(map(_as_file, unit.rows)))
        for unit in units
        if unit.state == COMMITTED
    ]


def _as_file(row: Row) -> File:
    return File(row["path"], row["size"], row["mtime_ns"], None)


def find_step(run: Run, checkpoint: Checkpoint) -> int | None:
    """Return the last step that the output told of before the checkpoint was written, None when that is not known."""
    return read_step_at(checkpoint.attempt, run.attempt(checkpoint.attempt), checkpoint.mtime_ns / 1e9)
