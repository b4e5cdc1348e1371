"""Find the line of every key in a TOML text, because tomllib gives no positions.

A scanner for text that tomllib has already accepted: it knows where keys and values begin and end, and nothing
of what values mean. Only that may live here.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

KeyPath = tuple[str | int, ...]
"""Names of tables and keys, and indices of arrays, from the top: ("hosts", "4070ti", "address", 0)."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
# A string of three quotes may end in up to two more, which belong to its content.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' + r"|'''.*?'{3,5}" + r'|"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def parse_key_lines(text: str) -> dict[KeyPath, int]:
    r"""Map the path of every table, key and array element to its line, from 1.

    The text must be valid TOML with newlines as `\n`. Deep nesting raises RecursionError, as tomllib does.
    """
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


def parse_gaps(text: str) -> list[tuple[int, int, KeyPath]]:
    """Return what stands above each header, [start, end) in whole lines, and its path; last, with (), the text's end.

    It begins below the last line that says something, and holds blank lines and comments only.
    """
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.gaps


def choose_line(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """Choose the line of the longest part of the path that stands in the text; 1 when none does."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return 1


class _Scanner:
    """One pass over the text; `lines` is its result."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.gaps: list[tuple[int, int, KeyPath]] = []
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._array_sizes: dict[KeyPath, int] = {}

    def scan(self) -> None:
        table: KeyPath = ()
        said = 0
        while self._next():
            start = self._at
            if self._text[start] == "[":
                table = self._scan_header()
                self._record_gap(said, start, table)
            else:
                self._scan_pair(table)
            said = self._at
        self._record_gap(said, len(self._text), ())

    def _next(self) -> str:
        """Skip white space and comments; the character that follows, or nothing at the end."""
        self._skip(_BLANK)
        return self._text[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise AssertionError(f"not TOML at character {self._at}: tomllib must accept the text first")
        self._at = match.end()
        return match.group()

    def _record(self, path: KeyPath, at: int) -> None:
        self.lines.setdefault(path, bisect_left(self._newlines, at) + 1)

    def _record_gap(self, said: int, start: int, path: KeyPath) -> None:
        """Record the whole lines from the end of what was said last to where the next header stands."""
        end = self._text.rfind("\n", 0, start) + 1 if path else start
        begin = self._text.find("\n", said, end) + 1 if said else 0
        self.gaps.append((begin if begin or not said else end, end, path))

    def _scan_header(self) -> KeyPath:
        start, double = self._at, self._text.startswith("[[", self._at)
        self._at += 2 if double else 1
        keys = self._scan_keys()
        self._at += 2 if double else 1
        return self._enter(keys, start, double=double)

    def _enter(self, keys: list[str], at: int, *, double: bool) -> KeyPath:
        """Record a header's tables; a name that is an array of tables stands for its newest element."""
        path: KeyPath = ()
        for depth, key in enumerate(keys, start=1):
            path = (*path, key)
            self._record(path, at)
            if double and depth == len(keys):
                self._array_sizes[path] = self._array_sizes.get(path, 0) + 1
            if path in self._array_sizes:
                path = (*path, self._array_sizes[path] - 1)
                self._record(path, at)
        return path

    def _scan_keys(self) -> list[str]:
        keys = [_parse_key(self._skip(_KEY))]
        while self._text.startswith(".", self._at):
            self._at += 1
            keys.append(_parse_key(self._skip(_KEY)))
        return keys

    def _scan_pair(self, table: KeyPath) -> None:
        path, start = table, self._at
        for key in self._scan_keys():
            path = (*path, key)
            self._record(path, start)
        self._at += 1  # the "="
        self._scan_value(path)

    def _scan_value(self, path: KeyPath) -> None:
        first = self._next()
        if first == "[":
            self._scan_array(path)
        elif first == "{":
            self._scan_inline_table(path)
        else:
            self._skip(_STRING if first in {'"', "'"} else _SCALAR)

    def _scan_array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._next() != "]":
            self._record((*path, index), self._at)
            self._scan_value((*path, index))
            index += 1
            self._skip_comma()
        self._at += 1

    def _scan_inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._next() != "}":
            self._scan_pair(path)
            self._skip_comma()
        self._at += 1

    def _skip_comma(self) -> None:
        if self._next() == ",":
            self._at += 1


def _parse_key(written: str) -> str:
    bare = written.strip(" \t")
    if bare[0] == "'":
        return bare[1:-1]
    if bare[0] == '"':
        return str(tomllib.loads(f"key = {bare}")["key"])
    return bare
