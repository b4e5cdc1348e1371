"""Git's ignore patterns as regular expressions; pure, and the same for .gitignore files and our globs.

Written from git's documented and observed behaviour, with git itself as the oracle in the tests. A library was
tried first: pathspec decides on a whole path with its folders at once, so nested files with negation come out
differently, and its import costs 30 ms of every launch that has an `include`.

Patterns match bytes in git (`?` is one byte), so a path is seen as its bytes, one character each: byte_view.
"""

from __future__ import annotations

import json
import os
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLANK, _SPACE = " \t", " \t\n\r"
_CLASSES = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": _BLANK,
    "cntrl": "".join(map(chr, [*range(1, 32), 127])),
    "digit": string.digits,
    "graph": "".join(map(chr, range(33, 127))),
    "lower": string.ascii_lowercase,
    "print": "".join(map(chr, range(32, 127))),
    "punct": string.punctuation,
    "space": _SPACE,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}
_STAR = "[^/]*"
_WILD = frozenset("*?[\\")


class _NeverMatches(ValueError):
    """An unclosed bracket, an unknown class or a dangling backslash: git matches nothing with it."""


@dataclass(frozen=True, slots=True)
class IgnoreFile:
    """One .gitignore: `base` is the byte view of its folder (with a slash), rules are (negated, regex)."""

    base: str
    rules: tuple[tuple[bool, re.Pattern[str]], ...]
    any_rule: re.Pattern[str]

    def decide(self, view: str, *, is_folder: bool) -> bool | None:
        """Say whether the path with this byte view is ignored here; None: this file has no opinion."""
        subject = ("D" if is_folder else "F") + view[len(self.base) :]
        if not self.any_rule.fullmatch(subject):
            return None
        return next((not negated for negated, rule in reversed(self.rules) if rule.fullmatch(subject)), None)


@dataclass(frozen=True, slots=True)
class Glob:
    """An include or exclude line. `fixed` is the path before the first wildcard; `depth` None: any depth."""

    text: str
    fixed: str
    literal: bool
    depth: int | None
    pattern: re.Pattern[str]

    def matches(self, path: str) -> bool:
        """Say whether the path, or a folder above it, is meant."""
        return self.pattern.fullmatch(byte_view(path)) is not None

    def may_hold(self, folder: str) -> bool:
        """Say whether a walk for this glob has to look into `folder`, which lies below `fixed`."""
        return self.depth is None or folder.count("/") + 1 < self.depth or self.matches(folder)


def byte_view(path: str) -> str:
    """Show a path as its bytes, one character for each."""
    return path if path.isascii() else os.fsencode(path).decode("latin-1")


def parse_ignore_file(content: bytes, folder: str) -> IgnoreFile | None:
    """Read the content of a .gitignore in `folder` ("" for the top); None when it holds no rule."""
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n")
    rules = [rule for rule in map(_parse_line, lines) if rule is not None]
    if not rules:
        return None
    base = byte_view(folder) + "/" if folder else ""
    compiled = tuple((negated, re.compile(source, re.DOTALL)) for negated, source in rules)
    return IgnoreFile(base, compiled, re.compile("|".join(source for _, source in rules), re.DOTALL))


def make_glob(text: str, *, plain_at_top: bool = False) -> Glob:
    """Read one line of include or exclude; raise ValueError for one that is absolute, climbs or is malformed.

    As in a .gitignore, a pattern without a slash matches at any depth; with `plain_at_top` one that has no
    wildcard either means the one at the top (`include = ["data"]` must not search the whole tree).
    """
    if text.startswith(("/", "~", "!")) or ".." in text.split("/") or "\0" in text:
        raise ValueError("not a path pattern inside the project")
    plain = byte_view(text.removeprefix("./"))
    body = plain.removesuffix("/")
    if not body:
        raise ValueError("an empty pattern")
    try:
        source = _translate(body)
    except _NeverMatches as error:
        raise ValueError(str(error)) from None
    below = "/.*" if body != plain else "(?:/.*)?"
    parts = body.split("/")
    wild = next((at for at, part in enumerate(parts) if _WILD & set(part)), len(parts))
    anywhere = len(parts) == 1 and not (plain_at_top and wild)
    return Glob(
        text=text,
        fixed="" if anywhere else os.fsdecode("/".join(parts[:wild]).encode("latin-1")),
        literal=wild == len(parts) and body == plain,
        depth=None if anywhere or "**" in parts else len(parts),
        pattern=re.compile(("(?:.*/)?" if anywhere else "") + source + below, re.DOTALL),
    )


def escape_glob(path: str) -> str:
    """Write the glob that means this path alone; a byte that is not text becomes `?`."""
    return "".join("?" if "\udc80" <= c <= "\udcff" else f"\\{c}" if c in _WILD else c for c in path)


def render_line(key: str, globs: Sequence[str]) -> str:
    """Write a line of the project file: `exclude = ["data/*.bin"]`."""
    return f"{key} = {json.dumps(list(globs), ensure_ascii=False)}"


def _parse_line(line: str) -> tuple[bool, str] | None:
    line = _trim(line.removesuffix("\r"))
    if not line or line[0] == "#":
        return None
    negated = line[0] == "!"
    body = line[1:] if negated else line
    kind = "D" if body.endswith("/") else "[DF]"
    body = body.removesuffix("/")
    if not body:
        return None
    anywhere = "" if "/" in body else "(?:.*/)?"
    try:
        return negated, f"(?:{kind}{anywhere}{_translate(body.removeprefix('/'))})"
    except _NeverMatches:
        return None


def _trim(line: str) -> str:
    """Drop trailing spaces, unless a backslash keeps them."""
    bare = line.rstrip(" ")
    backslashes = len(bare) - len(bare.rstrip("\\"))
    if bare == line or backslashes % 2 == 0:
        return bare
    return bare + " "


def _translate(pattern: str) -> str:
    """Turn a pattern without its outer slashes into the source of a regular expression.

    What follows a `*` up to the next one has a fixed length, so its first match is as good as any later one:
    an atomic group keeps `*a*a*a*a*b` of a stranger's .gitignore from trying them all.
    """
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            piece, at = _translate_stars(pattern, at)
            out = _close_star(out, piece)
        elif char == "[":
            piece, at = _translate_set(pattern, at)
        elif char == "\\":
            if at + 1 == len(pattern):
                raise _NeverMatches("a backslash at the end")
            piece, at = re.escape(pattern[at + 1]), at + 2
        else:
            piece, at = "[^/]" if char == "?" else re.escape(char), at + 1
        out.append(piece)
    return "".join(out)


def _close_star(out: list[str], piece: str) -> list[str]:
    if piece != _STAR:  # `**` has no fixed length: leave what stands before it as it is
        return ["".join(out)]
    start = out.index(_STAR) if _STAR in out else len(out)
    return [*out[:start], *(f"(?>[^/]*?{''.join(out[start + 1 :])})" for _ in out[start : start + 1])]


def _translate_stars(pattern: str, start: int) -> tuple[str, int]:
    """Read a run of stars; two or more that fill a part between slashes cross folders."""
    end = start
    while end < len(pattern) and pattern[end] == "*":
        end += 1
    opens = start == 0 or pattern[start - 1] == "/"
    if end - start < 2 or not opens or pattern[end : end + 1] not in {"", "/"}:
        return _STAR, end
    return (".+", end) if end == len(pattern) else ("(?:.*/)?", end + 1)


def _translate_set(pattern: str, start: int) -> tuple[str, int]:
    """Read `[...]` into the bytes it accepts; a slash is never one of them."""
    at = start + 1
    inverted = pattern[at : at + 1] in {"!", "^"}
    chars, end = _read_set(pattern, at + inverted)
    accepted = [chr(byte) for byte in range(1, 256) if (chr(byte) in chars) != inverted and byte != 0x2F]
    if not accepted:
        raise _NeverMatches("a bracket that accepts nothing")
    return "[" + "".join(map(re.escape, accepted)) + "]", end


def _read_set(pattern: str, at: int) -> tuple[set[str], int]:
    chars: set[str] = set()
    before = ""
    first = True
    while first or pattern[at : at + 1] != "]":
        first = False
        if pattern[at : at + 2] == "[:" and (found := _read_class(pattern, at)):
            members, at = found
            chars |= members
            before = ""
        elif pattern[at : at + 1] == "-" and before and pattern[at + 1 : at + 2] not in {"", "]"}:
            last, at = _read_char(pattern, at + 1)
            chars |= {chr(code) for code in range(ord(before), ord(last) + 1)}
            before = ""
        else:
            before, at = _read_char(pattern, at)
            chars.add(before)
    return chars, at + 1


def _read_char(pattern: str, at: int) -> tuple[str, int]:
    at += pattern[at : at + 1] == "\\"
    if at >= len(pattern):
        raise _NeverMatches("a bracket that is not closed")
    return pattern[at], at + 1


def _read_class(pattern: str, at: int) -> tuple[set[str], int] | None:
    """Read `[:name:]`; None when the closing `:]` is missing, so that the bracket is a plain character."""
    end = pattern.find("]", at + 2)
    if end < 0:
        raise _NeverMatches("a bracket that is not closed")
    if end < at + 3 or pattern[end - 1] != ":":
        return None
    members = _CLASSES.get(pattern[at + 2 : end - 1])
    if members is None:
        raise _NeverMatches("an unknown character class")
    return set(members), end + 1
