"""The checkpoints of a run that are here: what each holds, of which step it is, and whether it is still what was pulled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.contents import SUFFIXES, Contents, read_contents, render_contents
from remote_train.landing import PARTIAL
from remote_train.ledger import PULLED, read_ledger
from remote_train.retention import is_still
from remote_train.saving import read_step_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.records import Run

MOST_READ = 50
"""Checkpoints, the newest, that are looked into."""
OPTIMIZER_FILES = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""How files of a folder begin that are beside the model."""

Row = dict[str, Any]


@dataclass
class _Unit:
    """A file, or the files of one folder, with what the ledger of pulls says of each."""

    place: Path
    files: dict[Path, Row | None] = field(default_factory=dict)

    @property
    def saved(self) -> float | None:
        """When the host wrote it last, in seconds since 1970."""
        known = [entry for entry in self.files.values() if entry is not None]
        times = [entry["saved_ns"] if "saved_ns" in entry else entry["mtime_ns"] for entry in known]
        return max(times) / 1e9 if times else None

    @property
    def intact(self) -> bool | None:
        """Tell whether all of it is as it was pulled; None where no pull brought it."""
        known = {path: entry for path, entry in self.files.items() if entry is not None}
        return all(is_still(path, entry) for path, entry in known.items()) if known else None


def list_checkpoints(run: Run) -> list[Row]:
    """Return what was pulled of a run and what else lies in its files, the newest first; a folder is one row.

    Keys: path (below the run's folder, else absolute), files, size, saved, step, step_source, contents, holds, intact.
    """
    units = sorted(_find_units(run), key=lambda unit: (-(unit.saved or 0.0), str(unit.place)))
    return [_make_row(run, unit, look=place < MOST_READ) for place, unit in enumerate(units)]


def _find_units(run: Run) -> Iterable[_Unit]:
    ledger = {
        Path(place): entry for place, entry in read_ledger(run.folder / PULLED).items() if _is_entry(entry)
    }
    places = {path for path in ledger if path.is_file()}
    if run.files.is_dir():
        places |= {
            path for path in run.files.rglob("*") if path.is_file() and not path.name.endswith(PARTIAL)
        }
    units: dict[Path, _Unit] = {}
    for path in sorted(places):
        place = _find_place(path, ledger.get(path))
        units.setdefault(place, _Unit(place)).files[path] = ledger.get(path)
    return units.values()


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and {"size", "mtime_ns", "here_mtime_ns"} <= set(entry)


def _find_place(path: Path, entry: Row | None) -> Path:
    """Return the folder of a checkpoint of several files, else the file."""
    unit, below = (entry or {}).get("unit"), (entry or {}).get("path")
    if isinstance(unit, str) and isinstance(below, str) and below.startswith(f"{unit}/"):
        return path.parents[below.removeprefix(f"{unit}/").count("/")]
    return next((parent for parent in path.parents if parent.name.startswith("checkpoint-")), path)


def _make_row(run: Run, unit: _Unit, *, look: bool) -> Row:
    holds = _look_into(unit) if look else None
    step, source = (holds.step if holds else None), "file"
    if look and step is None and unit.saved is not None:
        step, source = _find_step(run, unit), "metrics"
    below = unit.place.is_relative_to(run.folder)
    return {
        "path": str(unit.place.relative_to(run.folder) if below else unit.place),
        "files": len(unit.files),
        "size": sum(path.stat().st_size for path in unit.files if path.exists()),
        "saved": unit.saved,
        "step": step,
        "step_source": source if step is not None else None,
        "contents": render_contents(holds) if holds else None,
        "holds": holds.as_json() if holds else None,
        "intact": unit.intact,
    }


def _find_step(run: Run, unit: _Unit) -> int | None:
    attempts = [
        entry["attempt"] for entry in unit.files.values() if entry and isinstance(entry.get("attempt"), int)
    ]
    number = attempts[0] if attempts else run.read()["attempts"][-1]["attempt"]
    return read_step_at(number, run.attempt(number), unit.saved or 0.0)


def _look_into(unit: _Unit) -> Contents | None:
    """Return what a checkpoint holds; of a folder, what its model files do together."""
    files = [path for path in unit.files if path.name.endswith(SUFFIXES)]
    if len(unit.files) > 1 or (files and files[0] != unit.place):
        files = [path for path in files if not path.name.startswith(OPTIMIZER_FILES)]
    return join_contents([read_contents(path) for path in files])


def join_contents(parts: list[Contents]) -> Contents | None:
    """Return what several files hold together; one that is unreadable makes all of it so."""
    if len(parts) <= 1:
        return parts[0] if parts else None
    bad = next((part for part in parts if part.kind == "unreadable"), None)
    known = [part for part in parts if part.parameters is not None]
    if bad is not None or not known:
        return bad or parts[0]
    return Contents(
        known[0].kind,
        sum(part.size for part in parts),
        tensors={name: tensor for part in known for name, tensor in part.tensors.items()},
        parameters=sum(part.parameters or 0 for part in known),
        dtypes=tuple(dict.fromkeys(dtype for part in known for dtype in part.dtypes)),
        step=next((part.step for part in known if part.step is not None), None),
    )
