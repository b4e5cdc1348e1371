"""What a host lists: where files may land, which checkpoint is the newest, and which names a glob means."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.errors import ProtocolError
from remote_train.host import files as host_files
from remote_train.pull import choose_latest, parse_row


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
        "\ud800",
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
    assert bool(host_files.make_pattern(glob).match(path)) == matches
