"""Which files a run has made, and where a line of its output begins."""

from __future__ import annotations

import fnmatch
import os
import re

from remote_train.host import layout, store

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Pattern, Tuple

PAGE = 2000
PAGE_BYTES = 512 * 1024
BLOCK = 1 << 16

CHECKPOINTS = ("*.pt", "*.pth", "*.ckpt", "*.safetensors", "checkpoint-*/**")
"""What counts as a checkpoint where the project names none (in any folder)."""


def make_pattern(glob: str) -> Pattern[str]:
    """Return a regex for a project-relative glob; without a slash it matches in any folder, `**` any depth."""
    prefix = "" if "/" in glob.rstrip("/").replace("/**", "") else "(?:.*/)?"
    text = "".join(_translate(part) for part in re.split(r"(\*\*/?|\*|\?|\[[^]]*\])", glob.rstrip("/")))
    return re.compile(prefix + text + r"\Z", re.DOTALL)


def _translate(part: str) -> str:
    if part in ("**", "**/"):
        return ".*"
    if part == "*":
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if part.startswith("["):
        return fnmatch.translate(part)[len("(?s:") : -len(r")\Z")]
    return re.escape(part)


def _walk(code: str) -> Iterator[Tuple[str, os.stat_result]]:
    """Yield every regular file below the snapshot, links not followed, by relative path."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(code, folder)) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                path = os.path.join(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False)


def list_made(root: str, folder: str, record: Dict[str, Any], globs: List[str]) -> List[Dict[str, Any]]:
    """Return the files of an attempt that its package did not hold in this form, by path.

    `globs` picks among them; empty means all. Each row: path, size, mtime_ns.
    """
    shipped = {row[0]: row for row in store.read_package(root, record["plan"]["package"]) or []}
    patterns = [make_pattern(glob) for glob in globs]
    began = int(record["started"] * 1e9)
    made = []
    for path, status in _walk(os.path.join(folder, layout.CODE)):
        row = shipped.get(path)
        if row is not None and row[1] == "f" and row[3] == status.st_size and status.st_mtime_ns < began:
            continue
        if "__pycache__/" in path:
            continue
        if not patterns or any(pattern.match(path) for pattern in patterns):
            made.append({"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns})
    return sorted(made, key=lambda item: str(item["path"]))


def take_page(made: List[Dict[str, Any]], after: str) -> Dict[str, Any]:
    """Return the rows behind `after` that fit one control frame, and where the next page begins, None at the end."""
    left = [item for item in made if str(item["path"]) > after]
    size = count = 0
    for item in left[:PAGE]:
        size += 80 + 6 * len(str(item["path"]))  # a character may be six in JSON
        if size > PAGE_BYTES and count:
            break
        count += 1
    return {"files": left[:count], "next": left[count - 1]["path"] if count < len(left) else None}


def resolve_made(folder: str, path: str) -> str:
    """Return the absolute path of a file inside the snapshot; raise ValueError for any other place."""
    code = os.path.realpath(os.path.join(folder, layout.CODE))
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
