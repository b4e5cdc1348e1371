"""Globs for files of a project: what they mean, as regexes that take no longer however many stars there are."""

from __future__ import annotations

import re

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import List, Pattern, Sequence

STAR, ANY = "*", "**"
_PARTS = re.compile(r"(\*\*/?|\*|\?|\[[^]]*\])")


def make_pattern(glob: str) -> Pattern[str]:
    """Return a regex for a project-relative glob; without a slash it matches in any folder, `**` any depth.

    Raises ValueError for one that means nothing.
    """
    text = glob.rstrip("/")
    first, *others = _parse(text)
    prefix = "" if "/" in text.replace("/**", "") else "(?:.*/)?"
    regex = _Regex()
    whole = prefix + regex.join(first, last=not others)
    for chunk in others[:-1]:
        whole += regex.commit(".*?" + regex.join(chunk, last=False))
    for chunk in others[-1:]:
        whole += ".*" + regex.join(chunk, last=True)
    return re.compile(whole + r"\Z", re.DOTALL)


def matches(patterns: Sequence[Pattern[str]], path: str) -> bool:
    """Tell whether one of the patterns means this path, or a folder that it lies in: a folder is meant whole."""
    while path:
        if any(pattern.match(path) for pattern in patterns):
            return True
        path = path.rpartition("/")[0]
    return False


class _Regex:
    """Writes one regex in which no star but the last is tried twice.

    What follows a star is taken where it first fits: if the rest does not match from there, it matches from no later place
    either. A regex that may go back tries every place for each star: fourteen stars are a lifetime.
    """

    def __init__(self) -> None:
        self._groups = 0

    def commit(self, text: str) -> str:
        """Match as `text` does first, and never go back into it; `(?>…)` is new in Python 3.11."""
        self._groups += 1
        return "(?=(?P<g%d>%s))(?P=g%d)" % (self._groups, text, self._groups)

    def join(self, pieces: List[str], *, last: bool) -> str:
        """Match pieces with a star between each two; the last of all must reach the end of the path."""
        text = pieces[0]
        for number, piece in enumerate(pieces[1:], 2):
            ends = last and number == len(pieces)
            text += "[^/]*" + piece if ends else self.commit("[^/]*?" + piece)
        return text


def _parse(text: str) -> List[List[str]]:
    """Return chunks, between which anything may lie; each is regexes, between which anything without a slash may."""
    chunks = [[""]]
    stars = ""
    for part in [*filter(None, _PARTS.split(text)), ""]:
        if part in (STAR, ANY, ANY + "/"):
            stars = STAR if part == STAR and stars != ANY else ANY
            continue
        if stars == ANY:
            chunks.append([""])
        elif stars == STAR:
            chunks[-1].append("")
        stars = ""
        chunks[-1][-1] += _translate(part)
    return chunks


def _translate(part: str) -> str:
    if part == "?":
        return "[^/]"
    inner = part[2:-1] if part.startswith("[!") else part[1:-1]
    if not (part.startswith("[") and part.endswith("]") and inner):
        return re.escape(part)
    members = ""
    while inner:
        wide = len(inner) > 2 and inner[1] == "-"
        if wide and inner[0] > inner[2]:
            raise ValueError("%s is no range of letters: %s comes after %s" % (part, inner[0], inner[2]))
        members += re.escape(inner[0]) + ("-" + re.escape(inner[2]) if wide else "")
        inner = inner[3 if wide else 1 :]
    return "(?!/)[%s%s]" % ("^" if part.startswith("[!") else "", members)
