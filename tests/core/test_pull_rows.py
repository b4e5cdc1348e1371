"""What a host lists: where files may land, which checkpoint is the newest, and which names a glob means."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remote_train.errors import ProtocolError, UsageError
from remote_train.host.globs import make_pattern
from remote_train.listed import choose_latest, make_patterns, parse_page, parse_row


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "./a",
        "a/.",
        "",
        "a/",
        "a\0b",
        "x" * 256,
        "a/" * 3000 + "b",
        "a/" * 200 + "b",
        "\ud800",
        "a\nb",
        "\x1b[2J",
        "\x9b2J",
        "a/b\x7f",
        "x.remote-train-partial",
    ],
)
def test_a_host_does_not_choose_where_a_file_lands(path: str) -> None:
    with pytest.raises(ProtocolError):
        parse_row({"path": path, "size": 1, "mtime_ns": 1})


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        "a",
        {},
        {"path": "a"},
        {"path": 1, "size": 1, "mtime_ns": 1},
        {"path": "a", "size": -1, "mtime_ns": 1},
    ],
)
def test_a_malformed_row_is_a_protocol_error(row: object) -> None:
    with pytest.raises(ProtocolError):
        parse_row(row)


GOOD = {"path": "a/b/c.pt", "size": 1, "mtime_ns": 1, "unit": "a/b", "state": "settling"}


@pytest.mark.parametrize("unit", ["a", "a/b", "a/b/c.pt"])
@pytest.mark.parametrize("state", ["committed", "settling", "incomplete"])
def test_a_row_says_of_which_checkpoint_it_is(unit: str, state: str) -> None:
    row = {**GOOD, "unit": unit, "state": state}
    assert parse_row(row | {"more": 1}, checkpoints=True) == row
    assert "unit" not in parse_row(row)


WRONG_UNITS: list[Any] = [None, 7, "", "/", ".", "..", "a/", "a/b/c", "b", "a/../a/b", "/a", "a/b/c.pt/d"]
WRONG_STATES: list[Any] = [None, "done", ["committed"], {}, True]


@pytest.mark.parametrize(
    "wrong", [{"unit": unit} for unit in WRONG_UNITS] + [{"state": state} for state in WRONG_STATES]
)
def test_a_unit_that_a_file_does_not_lie_in_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse_row({**GOOD, **wrong}, checkpoints=True)


@pytest.mark.parametrize(
    ("path", "unit", "taken"),
    [
        ("llm/model-1.safetensors", "llm", True),
        ("llm/config.json", "llm", True),
        ("llm/config.json", "llm/config.json", False),
        ("llm/train.py", "llm", False),
        ("llm/.bashrc", "llm", False),
        ("llm/deeper/config.json", "llm", False),
        ("best/anything", "best", True),
        ("best/deeper/anything", "best", True),
    ],
)
def test_beside_what_was_asked_for_only_companions_of_shards_are_taken(
    path: str, unit: str, taken: bool
) -> None:
    row = {"path": path, "size": 1, "mtime_ns": 1, "unit": unit, "state": "committed"}
    page = {"files": [row], "next": None}
    globs = ["*.safetensors", "best"]
    if taken:
        assert parse_page(page, "", globs, checkpoints=True) == [row]
    else:
        with pytest.raises(ProtocolError):
            parse_page(page, "", globs, checkpoints=True)


@given(st.text(max_size=40))
def test_every_path_that_passes_stays_below_its_folder(path: str) -> None:
    try:
        row = parse_row({"path": path, "size": 1, "mtime_ns": 1})
    except ProtocolError:
        return
    place = os.path.normpath(os.path.join("/target", row["path"]))  # noqa: PTH118  (as text)
    assert place.startswith("/target/")
    assert place == "/target/" + path


def row(path: str, mtime: int) -> dict[str, Any]:
    return {"path": path, "size": 1, "mtime_ns": mtime}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([row("a.pt", 1), row("b.pt", 3), row("c.pt", 2)], ["b.pt"]),
        (
            [row("o/checkpoint-1/a", 1), row("o/checkpoint-2/a", 2), row("o/checkpoint-2/b", 3)],
            ["o/checkpoint-2/a", "o/checkpoint-2/b"],
        ),
        (
            [row("checkpoint-2/x/a", 1), row("checkpoint-2/b", 9), row("c.pt", 8)],
            ["checkpoint-2/x/a", "checkpoint-2/b"],
        ),
        ([row("checkpoint-2/a", 1), row("c.pt", 8)], ["c.pt"]),
        ([row("a/checkpoint-1/m", 5), row("b/checkpoint-1/m", 4)], ["a/checkpoint-1/m"]),
    ],
)
def test_the_latest_checkpoint(rows: list[dict[str, Any]], expected: list[str]) -> None:
    assert [item["path"] for item in choose_latest(rows)] == expected


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.pt", "a.pt", True),
        ("*.pt", "deep/er/a.pt", True),
        ("*.pt", "a.pth", False),
        ("out*/ckpt.pt", "out-1/ckpt.pt", True),
        ("out*/ckpt.pt", "x/out-1/ckpt.pt", False),
        ("out*/ckpt.pt", "out/x/ckpt.pt", False),
        ("out/**", "out/a/b", True),
        ("out/**/x.pt", "out/x.pt", True),
        ("out/**/x.pt", "out/a/b/x.pt", True),
        ("checkpoint-*/**", "checkpoint-5/a/b", True),
        ("checkpoint-*/**", "o/checkpoint-5/a", True),
        ("a?.pt", "ab.pt", True),
        ("a?.pt", "a/.pt", False),
        ("[ab].pt", "b.pt", True),
        ("[!ab].pt", "b.pt", False),
        ("[!ab].pt", "c.pt", True),
        ("a+b(1).pt", "a+b(1).pt", True),
        ("a.pt", "aXpt", False),
        ("*", "deep/x", True),
        ("[ab.pt", "[ab.pt", True),
        ("out/", "out/x", False),
    ],
)
def test_globs(glob: str, path: str, matches: bool) -> None:
    assert bool(make_pattern(glob).match(path)) == matches


def make_backtracking(glob: str) -> re.Pattern[str]:
    """Return what a glob means as the plainest regex; each star may go back, so this is for few of them."""
    words = {"*": "[^/]*", "**": ".*", "**/": ".*", "?": "[^/]"}
    text = ""
    for part in re.split(r"(\*\*/?|\*|\?|\[[^]]*\])", glob.rstrip("/")):
        kind = (
            fnmatch.translate(part)[len("(?s:") : -len(r")\Z")] if part.startswith("[") else re.escape(part)
        )
        text += words.get(part, kind)
    prefix = "" if "/" in glob.rstrip("/").replace("/**", "") else "(?:.*/)?"
    return re.compile(prefix + text + r"\Z", re.DOTALL)


PARTS = ["*", "**", "**/", "/", "a", "b", "?", "[ab]", "[a-b]", "ab", ".", "[]", "-", "a/b"]


@settings(max_examples=1500, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=7),
    st.lists(st.sampled_from(["a", "b", "/", "ab", ".", "-", "["]), max_size=9),
)
@example(["*", "a", "*", "b"], ["a", "b", "a", "b"])
@example(["**", "a", "*", "b", "**", "a"], ["a", "/", "a", "b", "a"])
@example(["a", "*", "/", "*", "b"], ["a", "/", "b", "b"])
def test_a_glob_means_what_its_plain_regex_means(parts: list[str], path: list[str]) -> None:
    glob, name = "".join(parts), "".join(path)
    assert bool(make_pattern(glob).match(name)) == bool(make_backtracking(glob).match(name))


@pytest.mark.parametrize("glob", ["*a" * 14 + "*.pt", "**a" * 14 + "**.pt", "*" * 40 + ".pt", "**a*a*b" * 5])
def test_many_stars_do_not_hang(glob: str) -> None:
    """In a process that can be ended: a regex that goes back keeps the interpreter to itself for years."""
    code = "import sys; from remote_train.host.globs import make_pattern as m; print(m(sys.argv[1]).match(sys.argv[2]))"
    path = "/".join(["a" * 250] * 4)
    done = subprocess.run(
        [sys.executable, "-c", code, glob, path], capture_output=True, timeout=30, check=True
    )
    assert done.stdout == b"None\n"


def test_a_class_of_letters_means_no_slash() -> None:
    assert not make_pattern("a[!b]c").match("a/c")
    assert make_pattern("x/a[!b]c").match("x/a.c")


@pytest.mark.parametrize("glob", ["[z-a]*", "out/[b-a].pt"])
def test_a_range_that_runs_backwards_is_said_in_words(glob: str) -> None:
    with pytest.raises(ValueError, match="comes after"):
        make_pattern(glob)
    with pytest.raises(UsageError, match="comes after"):
        make_patterns([glob])
