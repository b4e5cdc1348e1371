"""Which files of a project travel: git's own answer, plus `include`, less secrets, environments, caches, `exclude`.

The order is the precedence: git (or the walk that imitates it) lists; `include` adds ignored files; folders of
left_out.py go; secrets go unless an include line names the file itself; `exclude` goes. Then each name is looked at
once: regular files stay with their stat result, links stay as links when they point inside, repositories inside are
asked for their own files, and everything else is left out with a notice.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote_train.errors import PackageError
from remote_train.package.git_tree import (
    GitCall,
    GitState,
    read_listing,
    read_state,
    start_listing,
    start_state,
)
from remote_train.package.ignore_rules import Glob, make_glob
from remote_train.package.ignored_data import IgnoredData, read_ignored_data
from remote_train.package.include_walk import read_glob
from remote_train.package.left_out import read_left_out
from remote_train.package.link_targets import read_link_target
from remote_train.package.plain_tree import read_plain_listing
from remote_train.package.secret_names import is_secret_folder, is_secret_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

MOST_NOTICES = 20  # of one kind
_SPECIAL = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the project file says about the package; max_mb in millions of bytes."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_mb: float = 200
    project_name: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know. kind: secret, special, output, link, git, include, submodule, unreadable, gone, size."""

    kind: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The choice: files and links sorted in `files`; stat results of files, targets of links."""

    files: tuple[str, ...]
    stats: Mapping[str, os.stat_result]
    links: Mapping[str, str]
    notices: tuple[Notice, ...]
    ignored: tuple[IgnoredData, ...]
    git: GitState | None


@dataclass(slots=True)
class _Draft:
    """What the steps below fill in."""

    root: str
    stats: dict[str, os.stat_result] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    real: dict[str, bool] = field(default_factory=dict)
    outputs: frozenset[tuple[int, int]] = field(default_factory=lambda: frozenset(_find_outputs()))

    def note(self, kind: str, path: str, message: str) -> None:
        self.notices.append(Notice(kind, path, message))


@dataclass(frozen=True, slots=True)
class _Globs:
    include: tuple[Glob, ...]
    exclude: tuple[Glob, ...]
    literal: frozenset[str]  # files that the user named without a wildcard: these may be secrets


def select_files(root: Path, rules: Rules) -> Selection:
    """Choose the files below `root` that travel; raise PackageError for a bad glob or a git that fails."""
    with start_listing(str(root)) as listing:
        return finish_selection(listing, root, rules)


def finish_selection(listing: GitCall, root: Path, rules: Rules) -> Selection:
    """Choose as select_files does, from a git listing that was started earlier."""
    draft = _Draft(os.path.realpath(root))
    globs = _make_globs(rules)
    with start_state(draft.root) as asked:
        paths, walked = _list_paths(listing, draft, "")
        paths += _read_included(draft, globs.include)
        _take(draft, globs, paths)
        git, ignored = read_state(asked, draft.root)
    if walked is not None:
        ignored = walked
    return Selection(
        files=tuple(sorted([*draft.stats, *draft.links])),
        stats=draft.stats,
        links=draft.links,
        notices=_limit(draft.notices),
        ignored=read_ignored_data(draft.root, ignored, draft.stats, int(rules.max_mb * 1e6)),
        git=git,
    )


def _make_globs(rules: Rules) -> _Globs:
    include = tuple(_read_glob("include", text) for text in rules.include)
    exclude = tuple(_read_glob("exclude", text) for text in rules.exclude)
    return _Globs(
        include, exclude, frozenset(glob.text.removeprefix("./") for glob in include if glob.literal)
    )


def _read_glob(key: str, text: str) -> Glob:
    try:
        return make_glob(text, plain_at_top=key == "include")
    except ValueError as error:
        raise PackageError(
            f"{key} = [{text!r}]: {error}",
            hint='write it relative to the project, as in a .gitignore: "data/*/*.bin"',
        ) from None


def _list_paths(listing: GitCall, draft: _Draft, prefix: str) -> tuple[list[str], list[str] | None]:
    """List by git; without git by a walk, which also knows what is ignored."""
    folder = f"{draft.root}/{prefix}".rstrip("/")
    answer = read_listing(listing, folder)
    for warning in answer.warnings:
        draft.note("unreadable", prefix, f"git: {warning}")
    if answer.paths or (answer.paths is not None and not _is_ignored_itself(folder)):
        return answer.paths, None
    reason = answer.reason if answer.paths is None else "git ignores this whole folder"
    if reason:
        draft.note("git", prefix, f"{reason}: files are chosen by the .gitignore files alone")
    walked = read_plain_listing(folder, heed_above=answer.paths is None)
    for path in walked.unreadable:
        draft.note("unreadable", prefix + path, "cannot be read: left out")
    return walked.paths, walked.ignored


def _is_ignored_itself(folder: str) -> bool:
    with GitCall(folder, "check-ignore", "--quiet", ".") as call:
        return call.finish()[0] == 0


def _read_included(draft: _Draft, globs: Iterable[Glob]) -> list[str]:
    found: list[str] = []
    for glob in globs:
        matches = list(read_glob(draft.root, glob))
        if not matches:
            draft.note("include", glob.text, "this include line matches no file")
        found += matches
    return found


def _take(draft: _Draft, globs: _Globs, paths: Collection[str], prefix: str = "") -> None:
    """Look at each path once; `prefix` is the repository inside that the paths come from."""
    names: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        folder, _, name = path.rpartition("/")
        names.setdefault(folder, []).append(name)
    if prefix:
        names = {(prefix + folder).rstrip("/"): found for folder, found in names.items()}
    for folder in _choose_folders(draft, names):
        _take_folder(draft, globs, folder, names.get(folder, ()))


def _take_folder(draft: _Draft, globs: _Globs, folder: str, names: Iterable[str]) -> None:
    start = f"{folder}/" if folder else ""
    full = f"{draft.root}/{start}"
    is_secret = any(map(is_secret_folder, folder.split("/")))
    for name in names:
        path = start + name
        if globs.exclude and _is_excluded(path, globs):
            continue
        if is_secret or is_secret_name(name):
            if path not in globs.literal:
                words = "looks like a secret: left out (an include line with its exact path sends it)"
                draft.note("secret", path, words)
                continue
            draft.note("secret", path, "looks like a secret, and goes along: an include line names it")
        try:
            found = os.lstat(full + name)
        except (FileNotFoundError, NotADirectoryError):  # deleted and not committed, or deleted just now
            continue
        if found.st_mode & 0o170000 == stat.S_IFREG:
            if draft.outputs and (found.st_dev, found.st_ino) in draft.outputs:
                draft.note("output", path, "is where this command's output goes: left out")
                continue
            draft.stats[path] = found
        else:
            _take_other(draft, globs, path.removesuffix("/"), found.st_mode)


def _find_outputs() -> Iterator[tuple[int, int]]:
    """Yield device and inode of the files that this process's own output goes to: they change with every line of it."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed
            status = os.fstat(number)
            if stat.S_ISREG(status.st_mode):
                yield status.st_dev, status.st_ino


def _is_excluded(path: str, globs: _Globs) -> bool:
    return any(glob.matches(path) for glob in globs.exclude)


def _take_other(draft: _Draft, globs: _Globs, path: str, mode: int) -> None:
    """Take what is no regular file: a link, a repository inside; tell about the rest."""
    if stat.S_ISLNK(mode):
        _take_link(draft, path)
    elif stat.S_ISDIR(mode):
        _take_repository(draft, globs, path)
    else:
        kind = _SPECIAL.get(stat.S_IFMT(mode), "not a file")
        draft.note("special", path, f"is {kind}: left out")


def _take_link(draft: _Draft, path: str) -> None:
    try:
        target = read_link_target(draft.root, path)
    except OSError:  # no longer a link: as if deleted
        return
    if target is None:
        draft.note("link", path, "points out of the project: left out (link data on the host with `data`)")
    else:
        draft.links[path] = target


def _take_repository(draft: _Draft, globs: _Globs, path: str) -> None:
    """Take a repository inside by its own rules; an empty folder is a submodule that is not checked out."""
    full = f"{draft.root}/{path}"
    if os.path.lexists(f"{full}/.git"):
        with start_listing(full) as listing:
            inside, _ = _list_paths(listing, draft, path + "/")
        _take(draft, globs, inside, path + "/")
    elif not os.listdir(full):  # noqa: PTH208 - a string in, a yes or no out
        draft.note(
            "submodule", path, "is an empty folder where git has a submodule: git submodule update --init"
        )


def _choose_folders(draft: _Draft, names: Mapping[str, Collection[str]]) -> list[str]:
    """Choose the folders whose files may travel: real ones, and none that is left out."""
    folders = _add_parents(names)
    gone = read_left_out(draft.root, folders, names)
    kept = {"": True}
    for folder in sorted(folders):  # a parent sorts before what is in it
        if folder and folder not in gone and folder.rpartition("/")[0] in kept and _is_real(draft, folder):
            kept[folder] = True
    return list(kept)


def _add_parents(names: Iterable[str]) -> set[str]:
    folders = set(names)
    waiting = list(folders)
    while waiting:
        parent = waiting.pop().rpartition("/")[0]
        if parent not in folders:
            folders.add(parent)
            waiting.append(parent)
    return folders


def _is_real(draft: _Draft, folder: str) -> bool:
    """Say whether a folder is one; below a link git sees nothing, and neither do we."""
    known = draft.real.get(folder)
    if known is None:
        try:
            known = stat.S_ISDIR(os.lstat(f"{draft.root}/{folder}").st_mode)
        except OSError:  # deleted
            known = False
        draft.real[folder] = known
    return known


def _limit(notices: list[Notice]) -> tuple[Notice, ...]:
    """Keep the first of each kind and count the others."""
    kept: list[Notice] = []
    counts: dict[str, int] = {}
    for notice in notices:
        counts[notice.kind] = counts.get(notice.kind, 0) + 1
        if counts[notice.kind] <= MOST_NOTICES:
            kept.append(notice)
    kept += [
        Notice(kind, "", f"{count - MOST_NOTICES} more of the same kind")
        for kind, count in counts.items()
        if count > MOST_NOTICES
    ]
    return tuple(kept)
