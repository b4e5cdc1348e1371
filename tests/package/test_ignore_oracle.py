"""Git is the oracle: the walk without git must list what `git ls-files` lists, for trees and rules nobody chose."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from remote_train.package.git_tree import read_listing, start_listing
from remote_train.package.ignore_rules import parse_ignore_file
from remote_train.package.plain_tree import read_plain_listing

NAMES = [
    "a",
    "b",
    "ab",
    "a.py",
    "b.bin",
    "build",
    "Data",
    "x y",
    "é",
    "[",
    "a]",
    "#c",
    "!d",
    "-e",
    "f\n",
    "a\\b",
]
PIECES = [
    *"ab*?/!\\[]-^# .",
    "**",
    "/**",
    "**/",
    "[ab]",
    "[!a]",
    "[^b]",
    "[a-c]",
    "[[:alpha:]]",
    "[]a]",
    "*.py",
    "build",
    "é",
    "\\ ",
]

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
lines = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join),
    st.tuples(
        st.sampled_from(["", "!"]),
        st.sampled_from(["", "/", "**/"]),
        paths,
        st.sampled_from(["", "/", "/*", "/**"]),
    ).map("".join),
)
rule_files = st.lists(lines, max_size=6).map("\n".join)
trees = st.tuples(
    st.sets(paths, min_size=1, max_size=12),
    st.dictionaries(st.sampled_from(["", "a/", "b/", "a/b/", "build/"]), rule_files, max_size=3),
)


def build(root: Path, files: set[str], rules: dict[str, str]) -> None:
    """Write what fits: a name cannot be a file and a folder at once."""
    for folder, content in sorted(rules.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / ".gitignore").write_text(content, encoding="utf-8")
    for path in sorted(files):
        target = root / path
        if target.exists() or any(parent.is_file() for parent in target.parents):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path, encoding="utf-8")


def list_by_git(root: Path) -> set[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", "--template=", root], check=True, env=environment)
    command = ["git", "-C", str(root), "ls-files", "-z", "--others", "--exclude-standard"]
    return set(
        os.fsdecode(subprocess.run(command, check=True, capture_output=True, env=environment).stdout).split(
            "\0"
        )[:-1]
    )


@given(trees)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(({"sub/build/x"}, {"": "x", "a/": "!build/"}))
@example(({"a/build/x", "a/build/b"}, {"": "x\nb", "a/": "!build/"}))
@example(({"a/b", "b"}, {"": "b\n!a/b"}))
@example(({"a/b/ab"}, {"": "a/*\n!a/b/"}))
def test_the_walk_lists_what_git_lists(tree: tuple[set[str], dict[str, str]]) -> None:
    files, rules = tree
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "project"
        root.mkdir()
        build(root, files, rules)
        walked = set(read_plain_listing(str(root)).paths)
        assert walked == list_by_git(root)


@given(st.lists(st.tuples(lines, paths), min_size=20, max_size=40))
@settings(max_examples=40, deadline=None)
def test_single_rules_agree_with_check_ignore(cases: list[tuple[str, str]]) -> None:
    """Many rules cheaply: each in a folder of its own, one git process for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        for number, (line, path) in enumerate(cases):
            build(root / f"case{number:02d}", {path}, {"": line})
        assert set(read_plain_listing(str(root)).paths) == list_by_git(root)


@pytest.mark.parametrize(
    ("content", "path", "is_folder", "verdict"),
    [
        (b"*.bin\r\n", "a/x.bin", False, True),
        (b"\xef\xbb\xbfnotes", "notes", False, True),
        (b"out/", "out", True, True),
        (b"out/", "out", False, None),
        (b"*.txt\n!keep.txt", "keep.txt", False, False),
        (b"#c\n\n   \n/", "c", False, None),
        (b"\\#c", "#c", False, True),
        (b"name\\ ", "name ", False, True),
        (b"name ", "name", False, True),
        (b"caf?", "café", False, None),  # é is two bytes
        (b"caf??", "café", False, True),
        (b"[z-a]", "m", False, None),
        (b"[z-a]", "z", False, True),  # the start of a range that is none still counts
        (b"a[", "a[", False, None),
        (b"x\xe9y", os.fsdecode(b"x\xe9y"), False, True),
    ],
)
def test_one_line(content: bytes, path: str, is_folder: bool, verdict: bool | None) -> None:
    from remote_train.package.ignore_rules import byte_view

    rules = parse_ignore_file(content, "")
    assert (rules.decide(byte_view(path), is_folder=is_folder) if rules else None) is verdict


def test_a_strangers_rule_cannot_hold_the_launch_up() -> None:
    """Tried one by one, the ways to place 40 stars in 200 letters outlast any timeout."""
    rules = parse_ignore_file(b"*a" * 40 + b"b\n" + b"x/" + b"*a" * 40 + b"/b", "")
    assert rules is not None
    assert rules.decide("a" * 200, is_folder=False) is None
    assert rules.decide("x/" + "a" * 200, is_folder=False) is None
    assert rules.decide("a" * 200 + "b", is_folder=False) is True


def test_rules_above_the_project_and_info_exclude_count_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "top" / "sub"
    build(
        tmp_path / "top",
        {"sub/a.bin", "sub/a.log", "sub/a.py", "sub/b"},
        {"": "*.bin\n/sub/b", "sub/": "!keep"},
    )
    expected = list_by_git(tmp_path / "top")
    (tmp_path / "top/.git/info").mkdir()
    (tmp_path / "top/.git/info/exclude").write_text("*.log\n")
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here
    with start_listing(str(root)) as call:
        answer = read_listing(call, str(root))
    assert answer.paths is None
    assert answer.reason == "git is not installed here"
    assert sorted(read_plain_listing(str(root)).paths) == [".gitignore", "a.py"]
    assert "sub/a.log" in expected  # before info/exclude named it
