"""From what was found on disk to manifest rows; pure. The row format and the id are in host/manifest_format.py."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from remote_train.host.manifest_format import FILE_MODE, PROGRAM_MODE, Rows

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

_DOMINANT = 0.7  # a folder is named by what is in it when one entry makes up this much of it


@dataclass(frozen=True, slots=True)
class Part:
    """A file or a folder (its path ends in a slash) and the bytes in it."""

    path: str
    size: int


def make_rows(
    stats: Mapping[str, os.stat_result], digests: Mapping[str, str], links: Mapping[str, str]
) -> Rows:
    """Make the sorted rows of a package; of a file's mode only "may its owner run it" travels."""
    rows: Rows = [
        [path, "f", PROGRAM_MODE if found.st_mode & 0o100 else FILE_MODE, found.st_size, digests[path]]
        for path, found in stats.items()
    ]
    rows.extend([path, "l", target] for path, target in links.items())
    rows.sort(key=itemgetter(0))
    return rows


def choose_biggest(sizes: Iterable[tuple[str, int]], count: int) -> list[Part]:
    """Choose the files and folders to name when a package is too big, biggest first.

    Folders are opened while one entry in them dominates, so that the path named is the one to act on.
    """
    tree = _sum_folders(sizes)
    parts = [_open_folder(part, tree) for part in tree.get("", [])]
    parts.sort(key=lambda part: (-part.size, part.path))
    return parts[:count]


def _sum_folders(sizes: Iterable[tuple[str, int]]) -> dict[str, list[Part]]:
    totals: dict[str, int] = {}
    for path, size in sizes:
        totals[path] = size
        folder = path
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            totals[folder + "/"] = totals.get(folder + "/", 0) + size
    children: dict[str, list[Part]] = {}
    for path, size in totals.items():
        parent = path.removesuffix("/").rpartition("/")[0]
        children.setdefault(parent + "/" if parent else "", []).append(Part(path, size))
    return children


def _open_folder(part: Part, tree: Mapping[str, list[Part]]) -> Part:
    while part.path.endswith("/"):
        biggest = max(tree[part.path], key=lambda child: child.size)
        if biggest.size < part.size * _DOMINANT:
            break
        part = biggest
    return part


def render_size(size: int) -> str:
    """Write bytes for people, in powers of 1000: `1.2 GB`."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
