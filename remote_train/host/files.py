"""Which files a run has made, and where a line of its output begins."""

from __future__ import annotations

import hashlib
import os

from remote_train.host import layout, store
from remote_train.host.globs import make_pattern, matches

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

PAGE = 2000
PAGE_BYTES = 512 * 1024
BLOCK = 1 << 16
PIECE = 1 << 20
KEPT = 100_001
"""Rows of a list: one more than a laptop takes (`pull.MAX_FILES`)."""

CHECKPOINTS = ("*.pt", "*.pth", "*.ckpt", "*.safetensors", "*.distcp", "checkpoint-*/**")
"""What counts as a checkpoint where the project names none (in any folder)."""


def has_snapshot(folder: str) -> bool:
    """Tell whether the folder that an attempt ran in is there; somebody may have removed it."""
    return os.path.isdir(os.path.join(folder, layout.CODE))


def _walk(code: str) -> Iterator[Tuple[str, os.stat_result]]:
    """Yield every regular file below the snapshot, links not followed, by relative path; what goes meanwhile is left out."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(code, folder)) as entries:
                found = sorted(entries, key=lambda item: item.name)
        except (FileNotFoundError, NotADirectoryError):
            if not folder:
                raise
            continue
        for entry in found:
            path = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                try:
                    yield path, entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue


def list_made(
    root: str, folder: str, record: Dict[str, Any], globs: List[str], *, sure: bool = True
) -> List[Dict[str, Any]]:
    """Return the files of an attempt that its package did not hold in this form, by path.

    `globs` picks among them; empty means all. Each row: path, size, mtime_ns. One that looks as it was shipped is read
    to be `sure`: its time proves nothing, a clock may have been set back, and a copy may keep the time of its source.
    """
    code = os.path.join(folder, layout.CODE)
    shipped = Shipped(root, code, record)
    patterns = [make_pattern(glob) for glob in globs]
    made = []
    for path, status in _walk(code):
        if "__pycache__/" in path or (patterns and not matches(patterns, path)):
            continue
        if not shipped.has(path, status, sure=sure):
            made.append({"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns})
    return sorted(made, key=lambda item: str(item["path"]))


class Shipped:
    """What an attempt's package held, and what it was resumed from: such a file is not of the run's making as long as it is in that form."""

    def __init__(self, root: str, code: str, record: Dict[str, Any]) -> None:
        rows = store.read_package(root, record["plan"]["package"]) or []
        self._rows = {row[0]: row for row in rows}
        self._rows.update(
            (row["path"], [row["path"], "f", row["mode"], row["size"], row["sha256"]])
            for row in record.get("restored", [])
        )
        self._code = code
        self._began = int(record["started"] * 1e9)
        self._known: Dict[Any, bool] = {}

    def has(self, path: str, status: os.stat_result, *, sure: bool) -> bool:
        """Tell whether a file is as it was shipped; one that looks so is read, once, to be `sure`."""
        row = self._rows.get(path)
        if row is None or row[1] != "f" or row[3] != status.st_size or status.st_mtime_ns >= self._began:
            return False
        key = (path, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        if sure and key not in self._known:
            self._known[key] = hash_file(os.path.join(self._code, path)) in (None, row[4])
        return self._known.get(key, True)


def hash_file(path: str) -> Optional[str]:
    """Return the SHA-256 of a file, None when it has just gone."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(PIECE), b""):
                digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


class Listing:
    """The last list that was asked for, kept from page to page: each begins where the one before it ended."""

    def __init__(self) -> None:
        self._of: Any = None
        self._made: List[Dict[str, Any]] = []

    def take_page(self, of: Any, after: str, list_anew: Callable[[], List[Dict[str, Any]]]) -> Dict[str, Any]:  # noqa: ANN401
        """Return the rows of a list behind `after` that fit one frame, and where the next page begins, None at the end."""
        if self._of != (of, after):
            self._made = [item for item in list_anew() if str(item["path"]) > after][:KEPT]
        page = take_page(self._made)
        self._of = (of, page["next"]) if page["next"] is not None else None
        self._made = self._made[len(page["files"]) :]
        return page


def take_page(made: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Return the rows that fit one control frame, and where the next page begins, None at the end."""
    size = count = 0
    for item in made[:PAGE]:
        size += 80 + 6 * len(str(item["path"]))  # a character may be six in JSON
        if size > PAGE_BYTES and count:
            break
        count += 1
    return {"files": made[:count], "next": made[count - 1]["path"] if count < len(made) else None}


def resolve_made(folder: str, path: str, area: str = layout.CODE) -> str:
    """Return the absolute path of a file inside the snapshot, or the weights; raise ValueError for any other place."""
    if area not in (layout.CODE, layout.WEIGHTS):
        raise ValueError("no such place in this run: %s" % area)
    code = os.path.realpath(os.path.join(folder, area))
    place = os.path.realpath(os.path.join(code, path))
    if os.path.commonpath([code, place]) != code or not os.path.isfile(place):
        raise ValueError("no such file in this run: %s" % path)
    return place


def find_tail(path: str, lines: int) -> Dict[str, int]:
    """Return the `offset` where the last `lines` lines begin, reading backwards from the end, and the `size`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {"offset": 0, "size": 0}
    try:
        size = os.fstat(fd).st_size
        return {"offset": _seek_lines(fd, size, lines), "size": size}
    finally:
        os.close(fd)


def tail_offset(path: str, lines: int) -> int:
    """Return the byte where the last `lines` lines begin."""
    return find_tail(path, lines)["offset"]


def _seek_lines(fd: int, size: int, lines: int) -> int:
    if size == 0 or lines <= 0:
        return size
    left = lines
    end = size
    last = os.pread(fd, 1, size - 1)
    if last == b"\n":
        end -= 1  # the newline that ends the last line begins none
    while end > 0:
        start = max(0, end - BLOCK)
        block = os.pread(fd, end - start, start)
        found = len(block)
        while True:
            found = block.rfind(b"\n", 0, found)
            if found < 0:
                break
            left -= 1
            if left == 0:
                return start + found + 1
        end = start
    return 0
