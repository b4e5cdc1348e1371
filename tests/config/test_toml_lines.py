from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.config.toml_lines import KeyPath, choose_line, parse_key_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = (Path(__file__).parent / "data" / "lines.toml").read_text("utf-8")
EXPECTED: dict[KeyPath, int] = {
    ("title",): 2,
    ("a",): 3,
    ("a", "b", "c.d"): 3,
    ('q"q',): 4,
    ("list",): 5,
    ("list", 0): 5,
    ("list", 1): 6,
    ("list", 1, 1): 6,
    ("list", 2): 7,
    ("list", 2, "y", "z", 0): 7,
    ("text",): 9,
    ("after",): 12,
    ("hosts",): 13,
    ("hosts", "4070ti"): 13,
    ("hosts", "4070ti", "port"): 14,
    ("hosts", "4070ti", "env", "AB"): 15,
    ("hosts", "4070ti", "env", "C"): 15,
    ("runs",): 16,
    ("runs", 0, "n"): 17,
    ("runs", 0, "sub"): 18,
    ("runs", 0, "sub", "k"): 19,
    ("runs", 1): 20,
    ("runs", 1, "n"): 21,
    ("runs", 1, "inner", 0): 22,
    ("runs", 1, "inner", 0, "m"): 23,
}


@pytest.mark.parametrize(("path", "line"), EXPECTED.items(), ids=str)
def test_a_key_is_found_on_its_line(path: KeyPath, line: int) -> None:
    assert parse_key_lines(SAMPLE)[path] == line


def list_paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield (*path, key)
        yield from list_paths(inner, (*path, key))


def test_every_path_of_the_sample_is_known_and_no_other() -> None:
    assert set(parse_key_lines(SAMPLE)) == set(list_paths(tomllib.loads(SAMPLE)))


def test_an_unknown_key_has_the_line_of_what_is_around_it() -> None:
    lines = parse_key_lines(SAMPLE)
    assert choose_line(lines, ("hosts", "4070ti", "missing", "deeper")) == 13
    assert choose_line(lines, ("nothing",)) == 1
    assert choose_line({}, ()) == 1


# Generated documents: every leaf's value is its own number, and stands on a line that holds its key.

MARKS = "[]{}=#,.'\"\\ab \t-é"
QUOTED = st.text(MARKS, max_size=5)
NAMES = st.one_of(st.text("ab-_1", min_size=1, max_size=4), QUOTED)
SCALARS = st.sampled_from(
    ["1", "-1.5e3", "true", '"#]}"', "'\\'", "1979-05-27 07:32:00", '"""\n[x]\ny=1\\"""" """', "'''\n''#'''"]
)


def write_key(name: str) -> str:
    if name and all(character in "ab-_1" for character in name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t") + '"'


@st.composite
def values(draw: st.DrawFn, depth: int = 0) -> str:
    kind = draw(st.integers(0, 4 if depth < 3 else 2))
    if kind <= 2:
        return draw(SCALARS)
    gap = draw(st.sampled_from([" ", ""] if kind == 3 else [" ", "", "\n", " # ]}\n"]))
    if kind == 4:
        items = [draw(values(depth + 1)) for _ in range(draw(st.integers(0, 3)))]
        return f"[{gap}" + f",{gap}".join(items) + f"{gap}]"
    names = draw(st.lists(NAMES, unique=True, max_size=3))
    return "{" + ",".join(f"{gap}{write_key(name)}={draw(values(depth + 1))}" for name in names) + "}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    tables = draw(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=4, unique_by=tuple))
    lines: list[str] = []
    for table in [None, *tables]:
        if table is not None:
            header = ".".join(write_key(name) for name in table)
            lines.append(f"[[{header}]]" if draw(st.booleans()) else f" [ {header} ] # [c]")
        for name in draw(st.lists(NAMES, max_size=3, unique=True)):
            lines.extend(["# = [", ""][: draw(st.integers(0, 2))])
            dotted = f"{write_key(name)} . {write_key(name)}" if draw(st.booleans()) else write_key(name)
            lines.append(f"{dotted} = {draw(values())}")
    return "\n".join(lines)


def is_valid(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(documents().filter(is_valid))
def test_lines_of_generated_documents_contain_their_keys(text: str) -> None:
    found = parse_key_lines(text)
    lines = text.split("\n")
    assert set(found) == set(list_paths(tomllib.loads(text)))
    for path, line in found.items():
        key = path[-1]
        if isinstance(key, str):
            assert write_key(key) in lines[line - 1]
