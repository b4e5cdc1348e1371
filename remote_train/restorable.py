"""What a run can go on from: the newest checkpoint that is whole, here or on the host of an older attempt.

Newest is that of the highest attempt, then the one that was changed last. Of two copies of one the host's is taken:
it need not travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.errors import ProtocolError
from remote_train.host.files import CHECKPOINTS
from remote_train.listed import make_patterns, parse_page, unit_of
from remote_train.mirror import hash_file
from remote_train.records import read_json
from remote_train.refusals import NoSuchFile
from remote_train.retention import is_still
from remote_train.watch import read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from remote_train.records import Run
    from remote_train.session import Session

LISTING_SECONDS = 600.0
FILE_MODE = 0o644
MOST_OUTPUT = 64 << 20
"""Bytes of output that are read again to say which step a checkpoint is of."""

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


def choose_newest(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """Return the one to go on from; one that is here only if all of it still has the hash it came with."""
    ordered = sorted(found, key=lambda item: (item.attempt, item.mtime_ns, not item.is_here), reverse=True)
    return next((item for item in ordered if not item.is_here or all(map(_is_sound, item.files))), None)


def _is_sound(file: File) -> bool:
    try:
        return file.place is not None and hash_file(file.place) == file.sha256
    except OSError:
        return False


def list_here(run: Run) -> Iterator[Checkpoint]:
    """Yield the checkpoints that were pulled and are here as they came."""
    record = run.read()
    globs = {item["attempt"]: item["plan"].get("checkpoints") or CHECKPOINTS for item in record["attempts"]}
    units: dict[tuple[int, str], dict[str, File]] = {}
    for file, attempt in _read_ledger(run):
        patterns = make_patterns(globs.get(attempt, CHECKPOINTS))
        if any(pattern.match(file.path) for pattern in patterns):
            unit = units.setdefault((attempt, unit_of(file.path)), {})
            if file.path not in unit or unit[file.path].mtime_ns < file.mtime_ns:
                unit[file.path] = file
    for (attempt, name), files in units.items():
        yield Checkpoint(name, attempt, tuple(files[path] for path in sorted(files)))


def _read_ledger(run: Run) -> Iterator[tuple[File, int]]:
    for place, entry in read_json(run.folder / "pulled.json").items():
        known = isinstance(entry, dict) and {"path", "attempt", "size", "mtime_ns", "sha256", "here_mtime_ns"}
        if known and known <= set(entry) and is_still(Path(place), entry):
            facts = (entry["path"], entry["size"], entry["mtime_ns"], entry["sha256"])
            yield File(*facts, Path(place)), entry["attempt"]


def list_there(session: Session, run: Run, attempt: int, globs: Sequence[str]) -> list[Checkpoint]:
    """Return what an attempt has left on its host, whole; [] where its files are gone. Raises ProtocolError, ConnectionLost."""
    wanted = list(globs or CHECKPOINTS)
    units: dict[str, list[Row]] = {}
    after: str | None = ""
    while after is not None:
        facts = {"run": run.id, "attempt": attempt, "globs": wanted, "after": after, "checkpoints": True}
        try:
            page = session.wait(session.submit("files", **facts), LISTING_SECONDS)
        except NoSuchFile:
            return []
        for row, said in zip(parse_page(page, after, wanted), page["files"], strict=True):
            unit, state = said.get("unit", unit_of(row["path"])), said.get("state", "committed")
            if not isinstance(unit, str):
                raise ProtocolError("a listing with a unit that is no name")
            units.setdefault(unit, []).append({**row, "whole": state == "committed"})
        after = page["next"]
    return [
        Checkpoint(
            unit, attempt, tuple(File(row["path"], row["size"], row["mtime_ns"], None) for row in rows)
        )
        for unit, rows in units.items()
        if all(row["whole"] for row in rows)
    ]


def find_step(run: Run, checkpoint: Checkpoint) -> int | None:
    """Return the last step that the output told of before the checkpoint was written, None when that is not known."""
    mirror = run.attempt(checkpoint.attempt)
    if mirror.offset("0") > MOST_OUTPUT:
        return None
    step = None
    for record in read_metrics(checkpoint.attempt, mirror):
        if record.wall_time is None or record.wall_time > checkpoint.mtime_ns / 1e9:
            break
        step = record.step if record.step is not None else step
    return step
