"""Ignored files that a run may need (data, weights): found cheaply, grouped, with the line that brings them along."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote_train.package.ignore_rules import escape_glob, render_line
from remote_train.package.left_out import is_left_out, read_is_record
from remote_train.package.secret_names import is_secret_folder, is_secret_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

DATA_ENDS = frozenset(
    {
        "arrow",
        "bin",
        "ckpt",
        "csv",
        "db",
        "gguf",
        "h5",
        "hdf5",
        "idx",
        "json",
        "jsonl",
        "lmdb",
        "mdb",
        "mds",
        "memmap",
        "model",
        "npy",
        "npz",
        "parquet",
        "pickle",
        "pkl",
        "pt",
        "pth",
        "safetensors",
        "tar",
        "tfrecord",
        "tfrecords",
        "tsv",
        "txt",
        "wav",
        "zip",
        "zst",
    },
)
TEXT_ENDS = frozenset({"csv", "json", "jsonl", "tsv", "txt"})
TEXT_BYTES = 100_000  # smaller ones are notes and settings more often than data
DATA_FOLDERS = frozenset({"data", "dataset", "datasets"})
MOST_NAMED = 5
MOST_LOOKED_AT = 2000  # entries in all ignored folders together: about 6 ms


@dataclass(frozen=True, slots=True)
class IgnoredData:
    """Ignored data in one folder. `line` goes into the project file; `at_least`: the look was cut short."""

    folder: str
    files: int
    size: int
    line: str
    at_least: bool


@dataclass(slots=True)
class _Group:
    is_data: bool
    deep: bool = False
    files: int = 0
    size: int = 0
    at_least: bool = False
    ends: set[str] = field(default_factory=set)

    def add(self, name: str, size: int) -> None:
        self.files += 1
        self.size += size
        self.ends.add(name.rpartition(".")[2] if "." in name else "")


def read_ignored_data(
    root: str, ignored: Iterable[str], taken: Collection[str], max_bytes: int
) -> tuple[IgnoredData, ...]:
    """Look at ignored paths (folders end in a slash) and name the most likely data, at most five folders.

    `taken` holds the paths that travel anyway. What is larger than `max_bytes` gets a `data` line, which syncs it
    once, in place of an `include` line.
    """
    budget = [MOST_LOOKED_AT]
    groups: dict[str, _Group] = {}
    for path in sorted(ignored, key=lambda path: (not _is_data_folder(path), path)):
        if path.endswith("/"):
            _look_into(root, path.removesuffix("/"), groups, budget, taken)
        elif path not in taken and not _is_of_a_run(root, path):
            folder, _, name = path.rpartition("/")
            _add_file(f"{root}/{path}", name, groups.setdefault(folder, _Group(_is_data_folder(path))))
    found = [(folder, group) for folder, group in groups.items() if group.files]
    found.sort(key=lambda pair: (not pair[1].is_data, -pair[1].size, pair[0]))
    return tuple(_make_ignored(folder, group, max_bytes) for folder, group in found[:MOST_NAMED])


def _is_data_folder(path: str) -> bool:
    return not DATA_FOLDERS.isdisjoint(path.split("/")[:-1])


def _look_into(
    root: str, top: str, groups: dict[str, _Group], budget: list[int], taken: Collection[str]
) -> None:
    """Add what an ignored folder holds to its group, as far as the budget goes."""
    group = groups.setdefault(top, _Group(is_data=_is_data_folder(top + "/"), deep=True))
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        children = _read_some(f"{root}/{folder}", budget)
        group.at_least |= budget[0] <= 0
        if is_left_out(folder, children) or is_secret_folder(folder.rpartition("/")[2]):
            continue
        if _is_of_a_run(root, folder):
            continue
        for name, is_folder in children.items():
            if is_folder:
                waiting.append(f"{folder}/{name}")
            elif f"{folder}/{name}" not in taken:
                _add_file(f"{root}/{folder}/{name}", name, group)


def _is_of_a_run(root: str, path: str) -> bool:
    """Say whether a path lies in the records of a run of ours: what was pulled is no data that a run needs."""
    parts = path.split("/")
    return len(parts) > 1 and parts[0] == "runs" and read_is_record(root, "/".join(parts[:2]))


def _read_some(folder: str, budget: list[int]) -> dict[str, bool]:
    """Read names until the budget is spent; a folder of a million files costs no more than that."""
    children: dict[str, bool] = {}
    try:
        with os.scandir(folder) as entries:
            while budget[0] > 0 and (entry := next(entries, None)) is not None:
                children[entry.name] = entry.is_dir(follow_symlinks=False)
                budget[0] -= 1
    except OSError:  # a hint is not worth an error; the folder is not part of the package
        return {}
    return children


def _add_file(full_path: str, name: str, group: _Group) -> None:
    end = name.rpartition(".")[2].lower() if "." in name else ""
    if (end not in DATA_ENDS and not (group.deep and group.is_data)) or is_secret_name(name):
        return
    try:
        found = os.lstat(full_path)
    except OSError:  # gone meanwhile
        return
    if stat.S_ISREG(found.st_mode) and (end not in TEXT_ENDS or found.st_size > TEXT_BYTES or group.is_data):
        group.add(name, found.st_size)


def _make_ignored(folder: str, group: _Group, max_bytes: int) -> IgnoredData:
    return IgnoredData(
        folder=folder or ".",
        files=group.files,
        size=group.size,
        line=_choose_line(folder, group, max_bytes),
        at_least=group.at_least,
    )


def _choose_line(folder: str, group: _Group, max_bytes: int) -> str:
    if group.size > max_bytes and folder:
        return render_line("data", [folder])
    if group.deep and group.is_data:
        return render_line("include", [escape_glob(folder) + "/"])
    start = escape_glob(folder) + "/" if folder else "/"
    start += "**/" if group.deep else ""
    ends = ("*." + escape_glob(end) if end else "*" for end in sorted(group.ends))
    return render_line("include", [(start + end).lstrip("/") for end in ends])
