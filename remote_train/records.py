"""What this laptop keeps of a run, in `PROJECT/runs/ID/`, and where it finds runs again.

    run.json                   what was asked for, on which host, in which attempts, and how it ended
    attempts/K/ranks/N.log     exact mirrors of the host's outputs; their size is the offset to go on from
    attempts/K/*.jsonl         mirrors of the host's clock, its telemetry, and what the meter and the script say of the training
    attempts/K/*.json          the host's own records of the attempt, its peak and its end
    files/RELATIVE             what `pull` brought; pulled.json(l) says with which hash
    mirror.lock                held by the one process that writes the mirrors
    resume.lock                held by the one command that starts another attempt
    pull.lock, puller.lock     shared by those that pull or wait for it; held by the one that does, naming its partial file

An index in the user's state folder leads from an id to its folder, so that RUN works from anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from remote_train.errors import LocalSpace, NameTaken, UsageError
from remote_train.flocks import is_locked, locked, open_lock, try_lock
from remote_train.host import durable, layout
from remote_train.landing import refuse_links
from remote_train.private import make_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN_FORMAT = 1
MIRROR_LOCK = "mirror.lock"
PULL_LOCK = "pull.lock"
PULLER_LOCK = "puller.lock"
RESUME_LOCK = "resume.lock"
LEFTOVER = re.compile(r"\.(\d+)\.tmp\Z")
"""Ends the name of a file that a killed process did not come to rename; the process's number."""


@cache
def client_root() -> Path:
    """Return the folder of this laptop's own state (index, memory of hosts); who writes there makes it."""
    return platformdirs.user_state_path("remote-train") / "client"


def make_local_space(place: Path, error: OSError) -> LocalSpace:
    """Return what a user is told when this machine did not take what had to be written."""
    return LocalSpace(f"{place}: {error.strerror or error}", hint=choose_hint(error), path=str(place))


def choose_hint(error: OSError) -> str:
    """Return what to do about a write that failed here."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space there and start again"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit on open files (`ulimit -n`) and start again"
    if error.errno == errno.EFBIG:
        return "raise the limit on the size of files (`ulimit -f`) and start again"
    return "make that folder writable and start again; for the state folder, XDG_STATE_HOME may name another"


@contextlib.contextmanager
def keeping(place: Path) -> Iterator[None]:
    """Turn an OSError of a record that matters into LocalSpace."""
    try:
        yield
    except OSError as error:
        raise make_local_space(place, error) from error


@dataclass(frozen=True)
class Run:
    """One run's folder on this laptop."""

    id: str
    folder: Path

    def read(self) -> dict[str, Any]:
        """Return run.json; raise UsageError when the folder holds none."""
        record = durable.read_record(str(self.folder / "run.json"))
        if record is None:
            raise UsageError(f"{self.folder} holds no record of a run")
        return record

    def update(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON values)
        """Change keys of run.json; a reader sees the old record or the new one. Raises LocalSpace, also when it is gone."""
        return self.change(lambda _record: changes)

    def change(
        self, choose: Callable[[dict[str, Any]], dict[str, Any]], *, sync: bool = False
    ) -> dict[str, Any]:
        """Change the keys that `choose` names, given the record as it is, before any other process of ours can.

        With `sync` it is durable when this returns.
        """
        if self.is_gone():
            raise LocalSpace(f"the records in {self.folder} were removed", path=str(self.folder))
        path = self.folder / "run.json"
        with keeping(path), locked(self.folder):
            record = self.read()
            changes = choose(record)
            record.update(changes)
            record.pop("format", None)
            if changes:
                durable.write_record(str(path), record, sync=sync)
        return record

    def known_state(self) -> str | None:
        """Return the state this laptop knows, None where it has no record."""
        record = durable.read_record(str(self.folder / "run.json"))
        return str(record["state"]) if record and "state" in record else None

    def is_gone(self) -> bool:
        """Tell whether somebody has removed the folder, or moved it away."""
        return not (self.folder / "run.json").exists()

    @property
    def files(self) -> Path:
        """Where pulled files land."""
        return self.folder / "files"

    def attempt(self, number: int) -> Attempt:
        """Return the mirror of one attempt."""
        return Attempt(self.folder / "attempts" / str(number))

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Hold the mirror's lock; yields False when another process of this laptop writes it already."""
        lock = open_lock(self.folder / MIRROR_LOCK)
        try:
            yield try_lock(lock)
        finally:
            if lock is not None:
                os.close(lock)

    @contextlib.contextmanager
    def pulling(self) -> Iterator[None]:
        """Keep the run's files on its host for as long as they are being pulled."""
        lock = open_lock(self.folder / PULL_LOCK)
        try:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def in_use(self) -> bool:
        """Tell whether a process of this laptop follows or pulls it."""
        return any(is_locked(self.folder / name) for name in (MIRROR_LOCK, PULL_LOCK))


@dataclass(frozen=True)
class Attempt:
    """The mirror of one attempt."""

    folder: Path

    def output(self, name: str) -> Path:
        """Return the mirror of an output: a rank's number, or one of layout.OTHERS."""
        return Path(layout.output_path(str(self.folder), name))

    def offset(self, name: str) -> int:
        """Return the byte to go on from."""
        path = self.output(name)
        return path.stat().st_size if path.exists() else 0

    def ranks(self) -> list[int]:
        """Return the ranks that have a mirror."""
        return sorted(int(path.stem) for path in (self.folder / layout.RANKS).glob("*.log"))

    def read(self, name: str) -> dict[str, Any] | None:
        """Return one of the host's records (layout.ATTEMPT, PEAK, EXIT), None when it is not here."""
        return durable.read_record(str(self.folder / name))

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Keep one of the host's records; raise LocalSpace."""
        path = self.folder / name
        with keeping(path):
            durable.write_record(str(path), {k: v for k, v in record.items() if k != "format"}, sync=False)

    def prepare(self) -> None:
        """Make the folders; raise LocalSpace, also where one of them is a link."""
        with keeping(self.folder):
            refuse_links(self.folder.parent.parent, self.output("0"))
            make_private(self.folder / layout.RANKS)


def find_namesake(home: Path, run_id: str) -> Path | None:
    """Return the folder of the run that has this id, under `home` or wherever this laptop knows one; None: it is free."""
    entry = client_root() / "index" / run_id
    known = Path(entry.read_text()) if entry.exists() else home / run_id
    return next((folder for folder in (home / run_id, known) if (folder / "run.json").exists()), None)


def check_name_free(home: Path, run_id: str) -> None:
    """Raise NameTaken when a run has this id already: two runs of one name could not be told apart afterwards."""
    taken = find_namesake(home, run_id)
    if taken is not None:
        hint = f"`remote-train show {run_id}` shows it; choose another --name, or leave it out"
        raise NameTaken(f"there is a run named {run_id} in {taken.parent}", hint=hint)


def create_run(home: Path, run_id: str, record: dict[str, Any]) -> Run:
    """Make the folder of a new run under `home` and its first record; raise NameTaken, LocalSpace."""
    folder = home / run_id
    check_name_free(home, run_id)
    try:
        make_private(home)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        hint = "another command is starting it, or the folder is not one of ours; choose another --name"
        raise NameTaken(f"there is a folder named {run_id} in {home}", hint=hint) from None
    except OSError as error:
        raise make_local_space(folder, error) from error
    run = Run(run_id, folder)
    try:
        _write_first(run, record)
        _write_index(run)
    except LocalSpace:
        with contextlib.suppress(OSError):
            drop_run(run)
        raise
    return run


def _write_first(run: Run, record: dict[str, Any]) -> None:
    with keeping(run.folder):
        durable.write_whole(str(run.folder / ".gitignore"), b"*\n", sync=False)
        # The first key marks the folder as ours: such folders are left out of packages.
        whole = {"remote_train_format": RUN_FORMAT, "run": run.id, **record}
        durable.write_record(str(run.folder / "run.json"), whole, sync=False)
        # Now, while there is room: on a full disk it can still be locked.
        (run.folder / MIRROR_LOCK).touch(mode=0o600)
        run.attempt(1).prepare()


def _write_index(run: Run) -> None:
    path = client_root() / "index" / run.id
    with keeping(path):
        make_private(path.parent)
        durable.write_whole(str(path), str(run.folder).encode(), sync=False)


def is_ours(run: Run) -> bool:
    """Tell whether this laptop made the run's record where it lies: one that came with a project may be a stranger's."""
    try:
        known = Path((client_root() / "index" / run.id).read_text()) == run.folder
        return known and run.folder.lstat().st_uid in {os.geteuid(), 0}
    except (OSError, ValueError):
        return False


def drop_run(run: Run) -> None:
    """Forget a run that never began."""
    for path in sorted(run.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    run.folder.rmdir()
    (client_root() / "index" / run.id).unlink(missing_ok=True)


def list_runs(project: Path | None = None) -> list[Run]:
    """Return the runs this laptop knows, oldest first; only those of one project's folder when it is given."""
    index = client_root() / "index"
    found = {}
    for entry in index.iterdir() if index.is_dir() else ():
        if LEFTOVER.search(entry.name):
            continue
        folder = Path(entry.read_text())
        if (folder / "run.json").exists():
            found[entry.name] = Run(entry.name, folder)
    if project is not None:
        found = {name: run for name, run in found.items() if run.folder.parent == project / "runs"}
        for path in (project / "runs").glob("*/run.json"):
            found.setdefault(path.parent.name, Run(path.parent.name, path.parent))
    return sorted(found.values(), key=_age)


def _age(run: Run) -> tuple[float, str]:
    record = durable.read_record(str(run.folder / "run.json")) or {}
    return (float(record.get("created", 0)), run.id)


def find_run(text: str | None, project: Path | None) -> Run:
    """Return the run that `text` names: an id, a unique prefix, or nothing (this project's latest).

    Raises UsageError (exit 2) for an unknown or ambiguous name. HOST:ID is resolved before, by who can ask a host.
    """
    if text is None:
        if project is None or not (runs := list_runs(project)):
            raise UsageError(
                "this project has no run yet", hint="`remote-train ps` lists the runs of all projects"
            )
        return runs[-1]
    runs = list_runs()
    if project is not None:
        runs += [run for run in list_runs(project) if run not in runs]
    exact = [run for run in runs if run.id == text]
    matching = exact or [run for run in runs if run.id.startswith(text)]
    if not matching:
        raise UsageError(f"no run is named {text}", hint="`remote-train ps` lists them")
    if len(matching) > 1:
        names = ", ".join(run.id for run in matching[:8])
        raise UsageError(f"{text} may mean {names}", hint="type more of the id")
    return matching[0]


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object that may be lost without harm; {} when it is absent or damaged."""
    try:
        value = json.loads(durable.read_plain(str(path)))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any], *, sync: bool = False) -> None:
    """Keep a JSON object: whole or not at all. Raises OSError."""
    make_private(path.parent)
    durable.write_whole(str(path), json.dumps(value, separators=(",", ":")).encode(), sync=sync)


def remember_json(path: Path, value: dict[str, Any]) -> None:
    """Keep a JSON object that may be lost without harm; a disk that does not take it costs only time."""
    with contextlib.suppress(OSError):
        write_json(path, value)
