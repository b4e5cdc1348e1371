"""A data folder, or one file of data: every file of it, whether git ignores it or not, named by its content.

Nothing outside the project and nothing that looks like a secret is in it. Programs are files like others, so that the
same contents have one name whatever modes they have here.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from remote_train.errors import PackageError
from remote_train.host.manifest_format import FILE_MODE, MAX_ROWS, Rows, make_package_id
from remote_train.package.link_targets import read_link_target
from remote_train.package.secret_names import is_secret_folder, is_secret_name
from remote_train.package.select_files import MOST_NOTICES
from remote_train.package.stat_cache import (
    choose_remembered,
    hash_tree,
    is_worth_writing,
    read_stat_cache,
    write_stat_cache,
)

ELSEWHERE = "or say under [hosts.NAME.data] in hosts.toml where it lies on the host"


@dataclass(frozen=True, slots=True)
class DataSet:
    """Data as it is sent: its files, and the id that they give it."""

    place: str
    """In the project."""
    base: Path
    """The folder that the rows are relative to."""
    rows: Rows
    data_id: str
    file: str = ""
    """The name of the one file, when it is no folder."""
    notices: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """Return what a plan calls it."""
        return f"{self.data_id}/{self.file}" if self.file else self.data_id

    @property
    def total_bytes(self) -> int:
        """Return the size of its files."""
        return sum(int(row[3]) for row in self.rows if row[1] == "f")


@dataclass(slots=True)
class DataListing:
    """What a walk found, before any file is read."""

    place: str
    base: str
    file: str = ""
    stats: dict[str, os.stat_result] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def note(self, path: str, message: str) -> None:
        """Keep a notice, if there are not too many."""
        if len(self.notices) < MOST_NOTICES:
            self.notices.append(f"{self.place}/{path}: {message}")


def walk_data(root: Path, place: str) -> DataListing:
    """Look at every file of a project's data; raise PackageError when there is none, or it lies elsewhere."""
    top = os.path.realpath(root)
    full = os.path.realpath(root / place)
    if not full.startswith(top.rstrip("/") + "/"):
        raise PackageError(
            f"data {place}: {root / place} leads out of the project to {full}",
            hint=f"put the data itself into the project, {ELSEWHERE}",
        )
    try:
        listing = _walk_folder(full, place) if Path(full).is_dir() else _look_at_file(full, place)
    except OSError as error:
        raise PackageError(
            f"data {place}: {error.filename or full}: {error.strerror}", hint=f"put it there, {ELSEWHERE}"
        ) from error
    if not listing.stats:
        raise PackageError(f"data {place}: no file in it can be sent", hint=f"put it there, {ELSEWHERE}")
    if len(listing.stats) + len(listing.links) > MAX_ROWS:
        raise PackageError(
            f"data {place} has {len(listing.stats):,} files, {MAX_ROWS:,} can travel",
            hint=f"pack them into fewer files (tar, shards), {ELSEWHERE}",
        )
    return listing


def _look_at_file(full: str, place: str) -> DataListing:
    folder, _, name = full.rpartition("/")
    listing = DataListing(place, folder, file=name)
    found = Path(full).stat()
    if stat.S_ISREG(found.st_mode):
        listing.stats[name] = found
    return listing


def _walk_folder(full: str, place: str) -> DataListing:
    listing = DataListing(place, full)
    waiting = [""]
    while waiting:
        start = waiting.pop()
        with os.scandir(f"{full}/{start}") as entries:
            for entry in entries:
                path = start + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if _is_wanted(listing, path, is_secret_folder(entry.name)):
                        waiting.append(path + "/")
                elif _is_wanted(listing, path, is_secret_name(entry.name)):
                    _take(listing, path, entry)
    return listing


def _is_wanted(listing: DataListing, path: str, is_secret: bool) -> bool:
    if is_secret:
        listing.note(path, "looks like a secret: left out")
    elif path.rpartition("/")[2] == ".git":
        listing.note(path, "a repository's own folder: left out")
    else:
        return True
    return False


def _take(listing: DataListing, path: str, entry: os.DirEntry[str]) -> None:
    if entry.is_symlink():
        target = read_link_target(listing.base, path)
        if target is None:
            listing.note(path, "points out of the data folder: left out")
        else:
            listing.links[path] = target
        return
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(found.st_mode):
        listing.stats[path] = found
    else:
        listing.note(path, "is not a file: left out")


def hash_data(listing: DataListing, cache_path: Path) -> DataSet:
    """Name what was found by its content; files that are as they were when they were hashed are not read again.

    Raises PackageError for a file that cannot be read, or does not hold still.
    """
    tree = hash_tree(listing.base, listing.stats, read_stat_cache(cache_path))
    rows: Rows = [
        [path, "f", FILE_MODE, found.st_size, tree.digests[path]] for path, found in tree.stats.items()
    ]
    rows.extend([path, "l", target] for path, target in listing.links.items())
    rows.sort(key=itemgetter(0))
    notices = list(listing.notices)
    if is_worth_writing(tree):
        try:
            write_stat_cache(cache_path, choose_remembered(tree))
        except OSError as error:
            notices.append(f"{cache_path}: hashes are not remembered: {error.strerror}")
    return DataSet(
        listing.place, Path(listing.base), rows, make_package_id(rows), listing.file, tuple(notices)
    )
