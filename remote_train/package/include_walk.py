"""Finding on disk what an `include` line means; git is not asked, because what is meant is mostly ignored by it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.package.left_out import is_left_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.package.ignore_rules import Glob


def read_glob(root: str, glob: Glob) -> Iterator[str]:
    """Find the files an include line means, without entering links or folders that never travel."""
    if not _is_real_folder(root, glob.fixed.rpartition("/")[0]):
        return
    waiting = [glob.fixed]
    while waiting:
        folder = waiting.pop()
        children = _read_folder(f"{root}/{folder}")
        if children is None:
            if glob.matches(folder):
                yield folder
            continue
        if folder and is_left_out(folder, children):
            continue
        for name, is_folder in children.items():
            path = f"{folder}/{name}" if folder else name
            if is_folder and glob.may_hold(path):
                waiting.append(path)
            elif not is_folder and glob.matches(path):
                yield path


def _read_folder(folder: str) -> dict[str, bool] | None:
    """Read names and whether each is a folder; None for what is there and no folder."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return None
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError:  # an include line that leads nowhere is told by its own notice
        return {}


def _is_real_folder(root: str, folder: str) -> bool:
    """Say whether no part of the path is a link or missing."""
    parts = folder.split("/") if folder else []
    heads = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return all(Path(root, head).is_dir() and not Path(root, head).is_symlink() for head in heads)
