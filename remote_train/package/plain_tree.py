"""The files of a project without git: a walk that obeys .gitignore files as git does.

Where the folder is a checkout that git cannot or will not read, the .gitignore files above it and
.git/info/exclude count too. A repository inside is one name with a slash, as in git's own listing.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from remote_train.package.git_tree import find_repository
from remote_train.package.ignore_rules import IgnoreFile, byte_view, parse_ignore_file
from remote_train.package.left_out import is_left_out

MAX_IGNORE_BYTES = 1 << 20


@dataclass(slots=True)
class PlainListing:
    """What the walk found: paths to take, ignored paths (folders with a slash), folders that cannot be read."""

    paths: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_plain_listing(root: str, *, heed_above: bool = True) -> PlainListing:
    """List the files below `root`, relative to it, in no order; heed the rules of the checkout around it or not."""
    base, above = _read_rules_above(Path(root)) if heed_above else ("", ())
    listing = PlainListing()
    waiting: list[tuple[str, tuple[IgnoreFile, ...]]] = [("", above)]
    while waiting:
        folder, rules = waiting.pop()
        entries = _read_folder(root, folder, listing)
        if folder and is_left_out(folder, entries):
            continue
        if ".gitignore" in entries:
            rules = _add_rules(rules, Path(root, folder, ".gitignore"), (base + folder).rstrip("/"))
        for name, is_folder in entries.items():
            path = f"{folder}/{name}" if folder else name
            if name == ".git":
                continue
            if _is_ignored(base + path, is_folder, rules):
                listing.ignored.append(path + "/" if is_folder else path)
            elif not is_folder:
                listing.paths.append(path)
            elif os.path.lexists(f"{root}/{path}/.git"):
                listing.paths.append(path + "/")
            else:
                waiting.append((path, rules))
    return listing


def _read_folder(root: str, folder: str, listing: PlainListing) -> dict[str, bool]:
    """Read names and whether each is a folder."""
    try:
        with os.scandir(f"{root}/{folder}") as entries:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except FileNotFoundError:  # removed during the walk, as if it had never been there
        return {}
    except OSError:
        listing.unreadable.append(folder or ".")
        return {}


def _is_ignored(path: str, is_folder: bool, rules: tuple[IgnoreFile, ...]) -> bool:
    """Ask the nearest file first; the first one with an opinion decides."""
    if not rules:
        return False
    view = byte_view(path)
    verdicts = (rule.decide(view, is_folder=is_folder) for rule in rules)
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _add_rules(rules: tuple[IgnoreFile, ...], path: Path, folder: str) -> tuple[IgnoreFile, ...]:
    """Put the rules of one file before those of the folders above."""
    try:
        # git does not follow a .gitignore that is a link.
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_size > MAX_IGNORE_BYTES:
            return rules
        more = parse_ignore_file(path.read_bytes(), folder)
    except OSError:  # git goes on without a .gitignore that it cannot read; so do we
        return rules
    return rules if more is None else (more, *rules)


def _read_rules_above(root: Path) -> tuple[str, tuple[IgnoreFile, ...]]:
    """Return where the project lies in its checkout ("" or "sub/"), and the rules that apply from above."""
    top = find_repository(str(root))
    if top is None or Path(top) == root:
        return "", _add_rules((), root / ".git" / "info" / "exclude", "")
    parts = root.relative_to(top).parts
    rules = _add_rules((), Path(top, ".git", "info", "exclude"), "")
    for depth in range(len(parts)):
        folder = "/".join(parts[:depth])
        rules = _add_rules(rules, Path(top, folder, ".gitignore"), folder)
    return "/".join(parts) + "/", rules
