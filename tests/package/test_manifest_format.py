"""The rows that cross the wire: what the host accepts, and deltas that always lead where they say."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host import manifest_format
from remote_train.host.manifest_format import (
    MAX_ROWS,
    ManifestError,
    Rows,
    apply_delta,
    check_rows,
    make_canonical_json,
    make_delta,
    make_package_id,
)
from tests.host_system.conftest import find_python

SHA = "ab" * 32
A_FILE: list[str | int] = ["a", "f", 0o644, 3, SHA]

names = st.binary(min_size=1, max_size=12).filter(
    lambda name: not set(name) & {0, 0x2F} and name not in {b".", b".."}
)
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: os.fsdecode(b"/".join(parts)))


def make_row(path: str, mode: int, size: int, link: bool) -> list[Any]:
    return [path, "l", "x"] if link else [path, "f", mode, size, SHA]


rows_of = st.lists(
    st.builds(make_row, paths, st.sampled_from([0o644, 0o755]), st.integers(0, 1 << 40), st.booleans()),
    max_size=12,
    unique_by=lambda row: row[0],
).map(lambda rows: sorted(rows, key=lambda row: row[0]))


@given(rows_of, rows_of)
def test_a_delta_leads_from_any_base_to_the_rows(base: Rows, rows: Rows) -> None:
    assert apply_delta(base, json.loads(json.dumps(make_delta(base, rows)))) == rows


@given(rows_of)
def test_rows_survive_json_and_keep_their_id(rows: Rows) -> None:
    back = json.loads(make_canonical_json(rows))
    assert back == rows
    assert make_package_id(back) == make_package_id(rows)


@given(rows_of)
def test_equal_rows_make_an_empty_delta(rows: Rows) -> None:
    assert make_delta(rows, [list(row) for row in rows]) == {"set": [], "drop": []}


@given(st.sets(paths, max_size=8))
def test_any_name_a_file_can_have_is_accepted(found: set[str]) -> None:
    inner = {path.rsplit("/", depth)[0] for path in found for depth in range(1, path.count("/") + 1)}
    check_rows([[path, "f", 0o644, 0, SHA] for path in sorted(found - inner)])


def test_the_id_is_pinned() -> None:
    rows: Rows = [["a/\udce9\n", "f", 0o755, 3, SHA], ["b", "l", "a"]]
    assert make_canonical_json(rows) == b'[["a/\\udce9\\n","f",493,3,"' + SHA.encode() + b'"],["b","l","a"]]'
    assert make_package_id(rows) == "fe0ffdb25278cbb487ea4ee508d541638b4788137ea394f79c472eb150e30e29"


@pytest.mark.parametrize(
    "rows",
    [
        {},
        "rows",
        None,
        [None],
        [[]],
        ["a"],
        [[1, "f", 0o644, 3, SHA]],
        [["a"]],
        [["a", "f"]],
        [["a", "d", 0o755, 0, SHA]],
        [["a", "f", 0o644, 3, SHA, 1]],
        [["a", "l", "b", "c"]],
        [["", "f", 0o644, 3, SHA]],
        [["/etc/passwd", "f", 0o644, 3, SHA]],
        [["../a", "f", 0o644, 3, SHA]],
        [["a/../../b", "f", 0o644, 3, SHA]],
        [["a/./b", "f", 0o644, 3, SHA]],
        [["a//b", "f", 0o644, 3, SHA]],
        [["a/", "f", 0o644, 3, SHA]],
        [[".", "f", 0o644, 3, SHA]],
        [["a\0b", "f", 0o644, 3, SHA]],
        [["\ud800", "f", 0o644, 3, SHA]],
        [["x" * 256, "f", 0o644, 3, SHA]],
        [["é" * 128, "f", 0o644, 3, SHA]],
        [["/".join(["x" * 200] * 21), "f", 0o644, 3, SHA]],
        [["a", "f", 0o4755, 3, SHA]],
        [["a", "f", "420", 3, SHA]],
        [["a", "f", 420.0, 3, SHA]],
        [["a", "f", 0o644, -1, SHA]],
        [["a", "f", 0o644, True, SHA]],
        [["a", "f", 0o644, 1.0, SHA]],
        [["a", "f", 0o644, 1 << 63, SHA]],
        [["a", "f", 0o644, 3, SHA.upper()]],
        [["a", "f", 0o644, 3, SHA + "\n"]],
        [["a", "f", 0o644, 3, "ab" * 31]],
        [["a", "f", 0o644, 3, None]],
        [A_FILE, A_FILE],
        [["b", "f", 0o644, 3, SHA], A_FILE],
        [A_FILE, ["a/b", "f", 0o644, 3, SHA]],
        [A_FILE, ["a-b", "f", 0o644, 3, SHA], ["a/b/c", "f", 0o644, 3, SHA]],
        [["a", "l", "b"], ["a/c", "f", 0o644, 3, SHA]],
        [["a", "l", ""]],
        [["a", "l", None]],
        [["a", "l", "/etc"]],
        [["a", "l", ".."]],
        [["a/b", "l", "../.."]],
        [["a/b", "l", "c/../d"]],
        [["a/b", "l", "../c/.."]],
        [["a", "l", "b/"]],
        [["a", "l", "./b"]],
        [["a", "l", "b\0"]],
    ],
    ids=repr,
)
def test_hostile_rows_are_refused(rows: Any) -> None:
    with pytest.raises(ManifestError):
        check_rows(rows)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [A_FILE],
        [["...", "f", 0o755, 0, SHA]],
        [["a b\n", "f", 0o644, 3, SHA]],
        [["a", "l", "."]],
        [["a", "l", "b/c"]],
        [["a/b", "l", ".."]],
        [["a/b/c", "l", "../../d"]],
        [["é" * 127, "f", 0o644, 3, SHA]],
    ],
    ids=repr,
)
def test_honest_rows_are_accepted(rows: Any) -> None:
    check_rows(rows)


def test_a_chain_of_accepted_links_cannot_leave_the_folder(tmp_path: Path) -> None:
    """`p/q/d -> ../..` is the top; a later `d/..` would be outside, and that is what is refused."""
    check_rows([["p/q/d", "l", "../.."]])
    with pytest.raises(ManifestError):
        check_rows([["p/q/d", "l", "../.."], ["p/q/x", "l", "d/.."]])
    root = tmp_path / "root"
    (root / "p/q").mkdir(parents=True)
    (root / "p/q/d").symlink_to("../..")
    (root / "p/q/x").symlink_to("d/..")
    assert (root / "p/q/x").resolve() == tmp_path.resolve()  # why


def test_too_many_rows_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(ManifestError, match="200000"):
        check_rows([None] * (MAX_ROWS + 1))


@pytest.mark.parametrize(
    "delta",
    [
        None,
        [],
        {},
        {"set": []},
        {"set": [], "drop": [], "more": []},
        {"set": {}, "drop": []},
        {"set": [], "drop": ["absent"]},
        {"set": [], "drop": [["a"]]},
        {"set": [], "drop": ["a", "a"]},
        {"set": [[]], "drop": []},
        {"set": ["a"], "drop": []},
        {"set": [[1]], "drop": []},
    ],
    ids=repr,
)
def test_a_delta_that_does_not_fit_is_refused(delta: Any) -> None:
    with pytest.raises(ManifestError):
        apply_delta([list(A_FILE)], delta)


@pytest.mark.parametrize("version", ["3.8", "3.13"])
def test_other_pythons_agree_on_the_id(version: str) -> None:
    folder = str(Path(manifest_format.__file__).parent)
    rows: Rows = [A_FILE, ["b/\udce9", "l", "../a"]]
    code = f"""
import sys
sys.path.insert(0, {folder!r})
import manifest_format
manifest_format.check_rows({rows!r})
print(manifest_format.make_package_id({rows!r}))
"""
    command = [find_python(version), "-I", "-S", "-B", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == make_package_id(rows)
