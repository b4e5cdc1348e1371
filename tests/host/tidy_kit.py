"""Runs and state roots as their files tell of them, made by hand where a real training would only take time."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from remote_train.host import durable, layout, store, system
from remote_train.host.manifest_format import make_package_id
from remote_train.records import Run
from tests.host.account_kit import make_rows, make_test_plan

DAY = 24 * 3600.0
BEGAN = 1_700_000_000.0


def write_package(root: Path, files: dict[str, bytes]) -> str:
    """Keep a manifest and its blobs, as a launch does."""
    rows = make_rows(files)
    package = make_package_id(rows)
    Path(layout.package_path(str(root), package)).write_text(json.dumps(rows))
    for data in files.values():
        path = Path(layout.blob_path(str(root), hashlib.sha256(data).hexdigest()))
        path.parent.mkdir(exist_ok=True)
        if not path.exists():  # it may be shared with a data folder
            path.write_bytes(data)
    return package


class Ended:
    """A run that ended, on the host and on the laptop."""

    def __init__(self, folder: Path, run: str = "run", checkpoints: tuple[str, ...] = ()) -> None:
        self.root = folder / "remote-train"
        store.open_root(str(self.root))
        self.folder = Path(layout.attempt_dir(str(self.root), run, 1))
        self.code = self.folder / layout.CODE
        (self.folder / layout.RANKS).mkdir(parents=True)
        self.code.mkdir()
        self.run = Run(run, folder / "project" / "runs" / run)
        self.run.attempt(1).prepare()
        plan = make_test_plan("0" * 64, ("train.py",), checkpoints=checkpoints).as_message()
        facts = {"token": f"token of {run}", "cookie": os.urandom(16).hex(), "root": str(self.root)}
        # The pid of a process that lives, and that started at another time.
        life = {"boot_id": system.boot_id(), "pid": os.getpid(), "start_time": "0", "started": BEGAN}
        record = {"run": run, "attempt": 1, "plan": plan, "gpus": [], "phase": "running", **facts, **life}
        ended = {"run": run, "code": 0, "outputs": {"0": 3}, "ended": BEGAN, "stopped": False}
        for place in (self.folder, self.run.attempt(1).folder):
            durable.write_record(str(place / layout.ATTEMPT), record)
            durable.write_record(str(place / layout.EXIT), ended)
            Path(layout.rank_log(str(place), 0)).write_bytes(b"hi\n")
        attempts = [{"attempt": 1, "host": "local", "plan": plan}]
        about = {"project": "project", "host": "local", "state_dir": None, "created": BEGAN, "package": None}
        durable.write_record(
            str(self.run.folder / "run.json"),
            {"run": run, "state": "ended", "exit": ended, "attempts": attempts, **about},
        )
        self._ledger: dict[str, Any] = {}

    def write(self, path: str, data: bytes, when_ns: int) -> None:
        """Have the training write a file, at this time."""
        place = self.code / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.utime(place, ns=(when_ns, when_ns))

    def pull(self, path: str, when_ns: int) -> None:
        """Bring a file home, as `pull` leaves it and its ledger."""
        source, place = self.code / path, self.run.files / path
        data = source.read_bytes()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.utime(place, ns=(when_ns, when_ns))
        status = source.stat()
        stated = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        entry = {**stated, "sha256": hashlib.sha256(data).hexdigest(), "here_mtime_ns": when_ns}
        self._ledger[str(place)] = entry
        (self.run.folder / "pulled.json").write_text(json.dumps(self._ledger))

    def pull_later(self, path: str, data: bytes, when_ns: int) -> None:
        """Bring home what the next attempt, on another host, made of a file."""
        place = self.run.files / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.utime(place, ns=(when_ns, when_ns))
        stated = {
            "path": path,
            "attempt": 2,
            "size": len(data),
            "mtime_ns": when_ns,
            "here_mtime_ns": when_ns,
        }
        self._ledger[str(place)] = {**stated, "sha256": hashlib.sha256(data).hexdigest()}
        (self.run.folder / "pulled.json").write_text(json.dumps(self._ledger))

    def edit(self, path: str, data: bytes, when_ns: int) -> None:
        """Have the user write over a pulled file."""
        place = self.run.files / path
        if place.exists():
            place.write_bytes(data)
            os.utime(place, ns=(when_ns, when_ns))

    def there(self) -> dict[str, bytes]:
        """Return the files that the run has made."""
        return read_tree(self.code)

    def here(self) -> dict[str, bytes]:
        """Return the files that are at home."""
        return read_tree(self.run.files)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def age(path: Path, seconds: float) -> None:
    """Make a file or folder look as if it was written so long ago."""
    then = path.lstat().st_mtime - seconds
    os.utime(path, (then, then))


def tidiers_of(home: Path) -> list[int]:
    """Return the processes that tidy for this HOME: our own name, and a root's tidy.lock open."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            ours = (entry / "comm").read_bytes() == b"remote-train\n"
            opened = [str(fd.readlink()) for fd in (entry / "fd").iterdir()] if ours else []
        except OSError:
            continue
        if any(path.endswith(layout.TIDY_LOCK) and path.startswith(str(home)) for path in opened):
            found.append(int(entry.name))
    return found
