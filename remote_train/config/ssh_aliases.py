"""The literal Host names of ~/.ssh/config and the files it includes: names that `--host` may use.

Only names: what an alias means is asked of `ssh -G` (sshconfig.py), never worked out here.
"""

from __future__ import annotations

import glob
import re
import shlex
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_FILES = 200  # far beyond any real use, and below Python's limit of nested calls
_MAX_BYTES = 1_000_000
_LINE = re.compile(r"\s*(?P<keyword>[A-Za-z]+)(?:\s*=\s*|\s+)(?P<rest>.*?)\s*")


def read_aliases(home: Path) -> tuple[str, ...]:
    """Read the aliases in the order they stand; files that cannot be read are left to `ssh -G` to report."""
    return tuple(name for name in _read_words(home) if not any(mark in name for mark in "*?!"))


def read_patterns(home: Path) -> tuple[str, ...]:
    """Read the patterns of Host lines, which name no one host, in the order they stand."""
    return tuple(name for name in _read_words(home) if any(mark in name for mark in "*?") and name[0] != "!")


def _read_words(home: Path) -> dict[str, None]:
    return dict.fromkeys(_read_names(home / ".ssh" / "config", home, set()))


def _read_names(path: Path, home: Path, seen: set[Path]) -> Iterator[str]:
    """Read the names of one file and those it includes; each file once, so that a circle ends."""
    if path in seen or len(seen) >= _MAX_FILES:
        return
    seen.add(path)
    for keyword, words in parse_ssh_lines(_read_text(path)):
        if keyword == "host":
            yield from words
            continue
        for included in (found for word in words for found in _find_included(word, home)):
            yield from _read_names(included, home, seen)


def parse_ssh_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Parse the Host and Include lines of an ssh_config: the keyword in lower case, and its words."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match and match["keyword"].lower() in {"host", "include"}:
            yield match["keyword"].lower(), _split_words(match["rest"])


def _split_words(rest: str) -> list[str]:
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        return list(lexer)
    except ValueError:  # an open quote: ssh refuses the file when the host is used
        return []


def _find_included(word: str, home: Path) -> list[Path]:
    """Find the files an Include names: relative to ~/.ssh, wildcards in order, as OpenSSH does."""
    place = home / word[2:] if word.startswith("~/") else home / ".ssh" / word  # an absolute word replaces it
    pattern = str(place)
    return [home / name for name in sorted(glob.glob(pattern))]  # noqa: PTH207 - Path.glob takes no absolute patterns


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would block
            return ""
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:  # missing or unreadable: `ssh -G` reports it when the host is used
        return ""
