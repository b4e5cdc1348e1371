"""The story of packaging: choose files, refuse what is too big, hash what has changed, name the result.

    git lists ─ select_files ─▶ files, links ─ stat_cache ─▶ hashes ─ manifest ─▶ rows, package id

git works in the background while the cache is read and files are looked at. Nothing is written into the project.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_train.errors import PackageError
from remote_train.host.manifest_format import MAX_ROWS, Rows, make_package_id
from remote_train.package.git_tree import DirtyDiff, GitState, read_dirty_diff, start_listing
from remote_train.package.ignore_rules import escape_glob, render_line
from remote_train.package.ignored_data import IgnoredData
from remote_train.package.manifest import Part, choose_biggest, make_rows, render_size
from remote_train.package.select_files import Notice, Rules, Selection, finish_selection
from remote_train.package.stat_cache import (
    HashedTree,
    choose_remembered,
    hash_tree,
    is_worth_writing,
    read_stat_cache,
    write_stat_cache,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DirtyDiff",
    "GitState",
    "IgnoredData",
    "Notice",
    "Package",
    "Rules",
    "make_package",
    "read_dirty_diff",
]

MANY_FILES = 20_000
MANY_BYTES = 500_000_000
MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Package:
    """What travels. `git` None: the project is in no repository, or git could not say."""

    rows: Rows
    package_id: str
    total_bytes: int
    notices: tuple[Notice, ...]
    ignored: tuple[IgnoredData, ...]
    git: GitState | None


def make_package(root: Path, rules: Rules, cache_path: Path) -> Package:
    """Package the project at `root`; remember hashes in `cache_path`, one file for each project.

    Raise PackageError when it is over max_mb, when a file cannot be read or does not hold still, or when git fails.
    """
    real = os.path.realpath(root)
    with start_listing(real) as listing:
        cache = read_stat_cache(cache_path)
        selection = finish_selection(listing, root, rules)
    _check_size(selection, rules)
    tree = hash_tree(real, selection.stats, cache)
    rows = make_rows(tree.stats, tree.digests, selection.links)
    total = sum(found.st_size for found in tree.stats.values())
    more = (*_note_size(len(rows), total), *_keep_cache(cache_path, tree))
    return Package(
        rows=rows,
        package_id=make_package_id(rows),
        total_bytes=total,
        notices=(*selection.notices, *more),
        ignored=selection.ignored,
        git=selection.git,
    )


def _check_size(selection: Selection, rules: Rules) -> None:
    """Refuse before anything is read: a package over the limit is mostly data that got in by accident."""
    total = sum(found.st_size for found in selection.stats.values())
    if len(selection.files) > MAX_ROWS:
        raise PackageError(
            f"the package has {len(selection.files):,} files, {MAX_ROWS:,} can travel",
            hint='leave data out: exclude = ["..."], or data = ["..."] for a folder that is sent once',
        )
    if total > rules.max_mb * 1e6:
        parts = choose_biggest(((path, found.st_size) for path, found in selection.stats.items()), MOST_NAMED)
        raise PackageError(
            f"the package is {render_size(total)}, over max_mb = {rules.max_mb:g}; the biggest:\n{_render_parts(parts)}",
            hint=_choose_size_hint(parts, total),
            total_bytes=total,
            biggest=[(part.path, part.size) for part in parts],
        )


def _render_parts(parts: list[Part]) -> str:
    return "\n".join(f"  {render_size(part.size):>8}  {part.path}" for part in parts)


def _choose_size_hint(parts: list[Part], total: int) -> str:
    folder = next((part.path for part in parts if part.path.endswith("/")), None)
    lines = [f"not needed by the run: {render_line('exclude', [escape_glob(parts[0].path)])}"]
    if folder is not None:
        lines.append(f"data, sent once and shared by runs: {render_line('data', [folder.removesuffix('/')])}")
    lines.append(f"needed as it is: max_mb = {total // 1_000_000 + 1}")
    return "in [package], one of:\n" + "\n".join(f"  {line}" for line in lines)


def _note_size(count: int, total: int) -> list[Notice]:
    if count <= MANY_FILES and total <= MANY_BYTES:
        return []
    return [Notice("size", "", f"a large package: {count:,} files, {render_size(total)}")]


def _keep_cache(path: Path, tree: HashedTree) -> list[Notice]:
    if not is_worth_writing(tree):
        return []
    try:
        write_stat_cache(path, choose_remembered(tree))
    except OSError as error:
        return [Notice("cache", str(path), f"hashes are not remembered: {error.strerror}")]
    return []
