"""Shapes that a value may be required to have: small checks that are put together, for what a stranger says.

A check accepts a value by returning, and refuses it by raising Malformed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping

    Check = Callable[[object], None]

PATH = 4096
LARGEST = 2**63 - 1
SHOWN = 80
"""Characters of a refused value that are told."""


class Malformed(Exception):
    """A value is not what it has to be; `place` leads to it from the outermost object."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.place = place


def _refuse(value: object, wanted: str) -> Malformed:
    said = (
        repr(value) if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__
    )
    return Malformed(f"{said[:SHOWN]} instead of {wanted}")


def _at(place: str, check: Check, value: object) -> None:
    try:
        check(value)
    except Malformed as error:
        raise Malformed(error.what, place + error.place) from None


def text(limit: int = PATH, pattern: re.Pattern[str] | None = None, wanted: str = "a text") -> Check:
    """Accept a string of at most `limit` characters that matches."""

    def check(value: object) -> None:
        if not isinstance(value, str) or (pattern is not None and not pattern.match(value)):
            raise _refuse(value, wanted)
        if len(value) > limit:
            raise Malformed(f"a text of {len(value)} characters")

    return check


def whole(low: int = 0, high: int = LARGEST) -> Check:
    """Accept an integer within bounds; true and false are none."""

    def check(value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _refuse(value, f"an integer from {low} on")

    return check


def number(low: float, high: float) -> Check:
    """Accept a number within bounds."""

    def check(value: object) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise _refuse(value, "a number")

    return check


def flag(value: object) -> None:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise _refuse(value, "true or false")


def scalar(value: object) -> None:
    """Accept anything that is not a list or an object."""
    if isinstance(value, (dict, list)):
        raise _refuse(value, "a single value")


def maybe(check: Check) -> Check:
    """Accept null too."""
    return lambda value: None if value is None else check(value)


def items(check: Check, limit: int) -> Check:
    """Accept a list."""

    def check_all(value: object) -> None:
        if not isinstance(value, list):
            raise _refuse(value, "a list")
        if len(value) > limit:
            raise Malformed(f"a list of {len(value)}")
        for place, item in enumerate(value):
            _at(f"[{place}]", check, item)

    return check_all


def table(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Accept an object with these fields."""

    def check(value: object) -> None:
        if not isinstance(value, dict):
            raise _refuse(value, "an object")
        for name, inner in required.items():
            if name not in value:
                raise Malformed("missing", f".{name}")
            _at(f".{name}", inner, value[name])
        for name, inner in (optional or {}).items():
            if name in value:
                _at(f".{name}", inner, value[name])

    return check


def named(check: Check, limit: int, name: Check) -> Check:
    """Accept an object whose names and values are all of one kind."""

    def check_all(value: object) -> None:
        if not isinstance(value, dict):
            raise _refuse(value, "an object")
        if len(value) > limit:
            raise Malformed(f"an object of {len(value)} fields")
        for key, item in value.items():
            _at(" name", name, key)
            _at(f".{key[:SHOWN]}", check, item)

    return check_all
