"""The packages of recent runs, kept on this laptop: a run goes on with its own code, whatever became of the project.

    STATE/client/packages/ID.json     the rows of a package
    STATE/client/blobs/ab/cdef…       its contents, by SHA-256

Copied behind a launch (`Keeping`), never on its way: reflinks where the file system can, never hard links, which would
change with the project's files. A file that is edited before it was copied is left out; hosts may still have it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempts import OVER
from remote_train.errors import PackageError
from remote_train.host import layout
from remote_train.host.disk import drop
from remote_train.host.durable import write_all
from remote_train.host.snapshot import clone
from remote_train.package.packing import GitState, Package
from remote_train.private import make_private, open_append
from remote_train.records import client_root, list_runs, read_json, write_json
from remote_train.upload import Content, ask_missing, hash_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from remote_train.listener import Listener
    from remote_train.records import Run
    from remote_train.session import Session
    from remote_train.ship import Row

KEEP = 10
"""Runs of a project whose packages stay."""
LOCK = "packages.lock"
CALM_SECONDS = 1.0
"""The training's first lines come before: to look at 20,000 files holds this process up."""
WAIT_SECONDS = 5.0
"""How long a detached launch stays for it; what is missing then, the next launch of the project copies."""
PIECE = 1 << 20
NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class Keeping:
    """The copying behind one launch, on a thread that nothing waits for."""

    def __init__(self, root: Path, package: Package) -> None:
        self.lost: Sequence[str] = ()
        """Files that could not be kept, and were not told of yet."""
        self.is_urgent = False
        """The run is to go on elsewhere by itself."""
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(root, package), name="keeping", daemon=True)
        self._thread.start()

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait for it, not long."""
        self._hurry.set()
        self._thread.join(seconds)

    def tell_lost(self, listener: Listener) -> None:
        """Tell, once, what was edited before it was kept: without it the run cannot go on elsewhere."""
        lost, self.lost = self.lost, ()
        if lost:
            text = (
                f"changed right after it was packaged, and is not kept here: {render_names(lost)}; "
                "the run can go on only where its package is"
            )
            hint = "what changes all the time is better left out: exclude = [...] under [package]"
            listener.tell("warn" if self.is_urgent else "note", text=text, hint=hint)

    def _run(self, root: Path, package: Package) -> None:
        self._hurry.wait(CALM_SECONDS)
        with contextlib.suppress(OSError):  # a disk that takes no more: the hosts have it too
            self.lost = keep_package(root, package)


def render_names(names: Sequence[str]) -> str:
    """Return the first five of some files, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def keep_package(root: Path, package: Package) -> list[str]:
    """Keep a package of the project at `root`, and return the files that are not as they were packaged; raise OSError."""
    path = _manifest(package.package_id)
    with _alone():
        if read_json(path).get("whole"):
            os.utime(path)
            return []
        make_private(client_root() / layout.BLOBS)
        lost = [str(row[0]) for row in package.rows if row[1] == "f" and not _keep_file(str(root), row)]
        write_json(path, {"rows": package.rows, "whole": not lost})
    return lost


def _keep_file(root: str, row: Row) -> bool:
    """Keep one file's contents; False when it is not what was packaged any more.

    Paths are plain strings here: this runs for each of 20,000 files behind a launch.
    """
    home = str(client_root())
    target = layout.blob_path(home, row[4])
    if _has(target, row[3]):
        return True
    temporary = os.path.join(home, layout.BLOBS, f"{row[4][:32]}.{os.getpid()}.tmp")  # noqa: PTH118  (see above)
    try:
        if _copy(f"{root}/{row[0]}", temporary) != row[4]:
            return False
        _rename(temporary, target)
    except FileNotFoundError:
        return False
    finally:
        drop(temporary)
    return True


def _rename(temporary: str, target: str) -> None:
    try:
        os.rename(temporary, target)  # noqa: PTH104  (as above)
    except FileNotFoundError:  # the first of its folder
        make_private(Path(target).parent)
        os.rename(temporary, target)  # noqa: PTH104  (as above)


def _copy(source: str, target: str) -> str:
    """Copy a file; return the hash of what arrived."""
    digest = hashlib.sha256()
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fd = os.open(target, NEW, 0o600)
        try:
            cloned = clone(reading, fd)
            while data := os.read(fd if cloned else reading, PIECE):
                digest.update(data)
                if not cloned:
                    write_all(fd, data)
        finally:
            os.close(fd)
    finally:
        os.close(reading)
    return digest.hexdigest()


def _has(path: str | Path, size: int) -> bool:
    try:
        return os.stat(path).st_size == size  # noqa: PTH116  (as above)
    except OSError:
        return False


def _blob(sha256: str) -> Path:
    return Path(layout.blob_path(str(client_root()), sha256))


def _manifest(package: str) -> Path:
    return Path(layout.package_path(str(client_root()), package))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Be the one process of this laptop that adds packages or takes them away."""
    make_private(client_root())
    with open_append(client_root() / LOCK) as lock:  # only its descriptor is wanted
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class KeptFiles:
    """The contents of a package: those that were kept, else the project's files that are still the same."""

    def __init__(self, root: Path, rows: Sequence[Row]) -> None:
        self.root = root
        self.rows = rows
        self.others: dict[str, Path] = {}
        """Other contents that a host may ask for, by hash."""

    def find(self, row: Row) -> Path:
        """Return where the contents of a row lie; raise PackageError when they are nowhere on this laptop."""
        place = self._find(row)
        if place is None:
            self.check([row])
        return place or self.root / str(row[0])

    def check(self, rows: Iterable[Row]) -> None:
        """Raise PackageError naming the files of these rows that are nowhere on this laptop."""
        lost = [row[0] for row in rows if self._find(row) is None]
        if lost:
            raise PackageError(
                f"neither the host nor this laptop has these files of its package any more: {render_names(lost)}",
                hint="put them back as they were then, or start a new run",
                lost=lost,
            )

    def refuse_lost(self, session: Session) -> None:
        """Raise PackageError for files that are neither here nor on this host: asked before anything is sent there."""
        lost = [row for row in self.rows if row[1] == "f" and self._find(row) is None]
        contents = [Content(row[4], row[3], self.root / str(row[0]), row[0]) for row in lost]
        missing = {item.sha256 for item in ask_missing(session, contents)[0]} if lost else set()
        self.check(row for row in lost if row[4] in missing)

    def _find(self, row: Row) -> Path | None:
        kept, own = _blob(row[4]), self.root / str(row[0])
        if row[4] in self.others or _has(kept, row[3]):
            return self.others.get(row[4], kept)
        return own if _has(own, row[3]) and hash_path(own) == row[4] else None


def recall(package: str, root: Path) -> KeptFiles | None:
    """Return the rows of a package and a way to its contents; None when it was not kept."""
    rows = read_json(_manifest(package)).get("rows") if layout.is_hash(package) else None
    return KeptFiles(root, rows) if isinstance(rows, list) else None


def recall_package(record: Mapping[str, Any], root: Path) -> tuple[Package, KeptFiles]:
    """Return the package of a run and its contents; without rows when it was not kept: a host may still have it."""
    files = recall(record["package"], root) or KeptFiles(root, [])
    git = GitState(record["commit"], None, bool(record.get("dirty"))) if record.get("commit") else None
    size = int(record.get("package_bytes") or 0)
    return Package(list(files.rows), record["package"], size, (), (), git), files


def drop_packages(keep: int = KEEP) -> None:
    """Drop packages that none of the `keep` last runs of a project has, nor one that is not over; raise OSError."""
    folder = client_root() / layout.PACKAGES
    if not folder.is_dir():
        return
    with _alone():
        wanted = {f"{package}.json" for package in choose_wanted(list_runs(), keep)}
        dropped = [path for path in folder.glob("*.json") if path.name not in wanted]
        for path in dropped:
            path.unlink()
        if dropped:
            _drop_blobs(folder)


def choose_wanted(runs: Iterable[Run], keep: int) -> set[str]:
    """Return the packages that stay; `runs` are all that this laptop knows, oldest first."""
    projects: dict[Path, list[Run]] = {}
    for run in runs:
        projects.setdefault(run.folder.parent, []).append(run)
    wanted = set()
    for found in projects.values():
        for place, run in enumerate(reversed(found)):
            record = run.read()
            if place < keep or record.get("state") not in OVER:
                wanted.add(str(record.get("package")))
    return wanted


def _drop_blobs(folder: Path) -> None:
    """Drop the contents that no package has."""
    kept = {
        row[4] for path in folder.glob("*.json") for row in read_json(path).get("rows", []) if row[1] == "f"
    }
    for path in (client_root() / layout.BLOBS).glob("??/*"):
        if path.parent.name + path.name not in kept:
            path.unlink(missing_ok=True)
