"""Hashes of files, remembered by what stat says of them, so that a launch reads only what has changed.

Git's rule against races holds: a file that was written within two seconds of being hashed (the coarsest time stamp
in use, FAT's) could change again without a visible trace, so its hash is used once and not remembered. On a network
file system whose clock is more than two seconds behind ours that rule is weaker, as ctime and inode still are not.

The file is JSON with one string per column (numbers as base64 of 64-bit words), which loads in half the time of one
object per file. It is only ever replaced whole; whatever is wrong with it, the answer is an empty cache.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import stat
import sys
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from remote_train.errors import PackageError
from remote_train.package.ignore_rules import escape_glob, render_line
from remote_train.private import make_private

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CACHE_FORMAT = 1
RACY_NS = 2_000_000_000
HELD_NS = 50_000_000
"""A writer that the system suspends in the middle of a write leaves a part of the file that holds still: seldom for so long."""
ATTEMPTS = 3
# Writing the cache of 20,000 files costs about 25 ms: not worth it while hashing the news again costs less.
WORTH_FILES, WORTH_BYTES = 200, 16 << 20
_WHOLE_READ_BYTES = 1 << 20  # file_digest sets up a 256 KiB buffer per call, which small files do not repay
_COLUMNS = ("size", "mtime_ns", "ctime_ns", "inode", "mode")

Signature = tuple[int, int, int, int, int]


class Hashed(NamedTuple):
    """A file as it was when it was hashed; `settled`: the hash may be remembered."""

    stat: os.stat_result
    sha256: str
    settled: bool


@dataclass(frozen=True, slots=True)
class StatCache:
    """Columns as they are on disk: a tuple for each of 20,000 files would cost 10 ms of every launch."""

    index: Mapping[str, int]
    columns: tuple[Sequence[int], ...]
    digests: str


EMPTY = StatCache({}, ((),) * 5, "")


class HashedTree(NamedTuple):
    """The files that are there with their hashes, `unsettled` those not to be remembered, and how much was read."""

    stats: dict[str, os.stat_result]
    digests: dict[str, str]
    unsettled: frozenset[str]
    fresh_files: int
    fresh_bytes: int


def make_signature(found: os.stat_result) -> Signature:
    """Keep of a stat result what changes when the content does, in the order of the columns."""
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode)


def make_stat_cache(signatures: Mapping[str, Signature], digests: Mapping[str, str]) -> StatCache:
    """Make a cache of the files in `signatures`."""
    if not signatures:
        return EMPTY
    columns = tuple(array("q", column) for column in zip(*signatures.values(), strict=True))
    index = {path: at for at, path in enumerate(signatures)}
    return StatCache(index, columns, "".join(digests[path] for path in signatures))


def read_stat_cache(path: Path) -> StatCache:
    """Read the cache; empty when it is missing, damaged or of another format."""
    try:
        return _parse_cache(path.read_bytes())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # A cache that cannot be read costs time and nothing else: every file is hashed again.
        return EMPTY


def _parse_cache(content: bytes) -> StatCache:
    known = json.loads(content)
    if known["format"] != CACHE_FORMAT or known["byteorder"] != sys.byteorder:
        return EMPTY
    paths = known["paths"].split("\0")
    columns = tuple(array("q", binascii.a2b_base64(known[name])) for name in _COLUMNS)
    digests = known["sha256"]
    if any(len(column) != len(paths) for column in columns) or len(digests) != 64 * len(paths):
        return EMPTY
    if bytes.fromhex(digests).hex() != digests:  # a third of the time of a regular expression
        return EMPTY
    return StatCache(dict(zip(paths, range(len(paths)), strict=True)), columns, digests)


def write_stat_cache(path: Path, cache: StatCache) -> None:
    """Replace the cache file; raise OSError when that fails (the package is good all the same)."""
    if not cache.index:
        return
    content: dict[str, object] = {
        "format": CACHE_FORMAT,
        "byteorder": sys.byteorder,
        "paths": "\0".join(cache.index),
        "sha256": cache.digests,
    }
    for name, column in zip(_COLUMNS, cache.columns, strict=True):
        content[name] = binascii.b2a_base64(array("q", column), newline=False).decode("ascii")
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(content), encoding="ascii")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def find_known(stats: Mapping[str, os.stat_result], cache: StatCache) -> dict[str, str]:
    """Return the hashes of the files that look as they did when they were hashed."""
    size, mtime, ctime, inode, mode = cache.columns
    digests, find = cache.digests, cache.index.get
    known: dict[str, str] = {}
    # One loop without calls: it runs for every file of every launch.
    for path, now in stats.items():
        at = find(path)
        if (
            at is not None
            and mtime[at] == now.st_mtime_ns
            and size[at] == now.st_size
            and ctime[at] == now.st_ctime_ns
            and inode[at] == now.st_ino
            and mode[at] == now.st_mode
        ):
            known[path] = digests[64 * at : 64 * at + 64]
    return known


def hash_tree(root: str, stats: Mapping[str, os.stat_result], cache: StatCache) -> HashedTree:
    """Find the hash of each file, from the cache where stat agrees with it; raise PackageError as hash_file does."""
    digests = find_known(stats, cache)
    found = dict(stats)
    unsettled: set[str] = set()
    fresh_files = fresh_bytes = 0
    for path in [path for path in stats if path not in digests]:
        hashed = hash_file(f"{root}/{path}", path)
        if hashed is None:
            del found[path]
            continue
        found[path], digests[path] = hashed.stat, hashed.sha256
        fresh_files += 1
        fresh_bytes += hashed.stat.st_size
        if not hashed.settled:
            unsettled.add(path)
    return HashedTree(found, digests, frozenset(unsettled), fresh_files, fresh_bytes)


def choose_remembered(tree: HashedTree) -> StatCache:
    """Make the cache for the next launch of the files whose hashes may be remembered."""
    settled = {path: make_signature(now) for path, now in tree.stats.items() if path not in tree.unsettled}
    return make_stat_cache(settled, tree.digests)


def is_worth_writing(tree: HashedTree) -> bool:
    """Say whether so much was read that the next launch should be spared it."""
    return tree.fresh_files >= WORTH_FILES or tree.fresh_bytes >= WORTH_BYTES


def hash_file(full_path: str, path: str) -> Hashed | None:
    """Hash one file that holds still meanwhile; None when it has gone.

    Raise PackageError naming `path` when it cannot be read, is no longer a file, or changes during each of three
    readings.
    """
    for _ in range(ATTEMPTS):
        try:
            hashed = _read_once(full_path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise PackageError(
                f"cannot read {path}: {error.strerror}",
                hint=f"make it readable, or leave it out: {render_line('exclude', [escape_glob(path)])}",
            ) from error
        if hashed is not None:
            return hashed
    raise PackageError(
        f"{path} changed each time it was read ({ATTEMPTS} times)",
        hint=f"wait until it is written, or leave it out: {render_line('exclude', [escape_glob(path)])}",
    )


def _read_once(full_path: str) -> Hashed | None:
    """Read the file behind one descriptor; None when it changed meanwhile."""
    start = time.time_ns()
    # O_NONBLOCK: a file that has become a fifo since must not hold the launch up.
    handle = os.open(full_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            return None
        digest, length = _digest(handle, before.st_size)
        _let_writer_go_on(before)
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if length != before.st_size or make_signature(before) != make_signature(after):
        return None
    settled = max(before.st_mtime_ns, before.st_ctime_ns) + RACY_NS <= start
    return Hashed(before, digest, settled)


def _let_writer_go_on(found: os.stat_result) -> None:
    """Wait until a file that was written a moment ago is no longer fresh; however many there are, it is one moment."""
    left = max(found.st_mtime_ns, found.st_ctime_ns) + HELD_NS - time.time_ns()
    if 0 < left <= HELD_NS:
        time.sleep(left / 1e9)


def _digest(handle: int, size: int) -> tuple[str, int]:
    if size > _WHOLE_READ_BYTES:
        with os.fdopen(handle, "rb", buffering=0, closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    content = os.read(handle, size + 1)  # one more than expected shows a file that has grown
    return hashlib.sha256(content).hexdigest(), len(content)
