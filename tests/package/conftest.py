"""Real git checkouts in temp folders, with a home of their own so that nobody's git config decides a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Content = str | bytes


class Tree:
    """A project folder under test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def write(self, **files: Content) -> None:
        self.write_all(files)

    def write_all(self, files: dict[str, Content]) -> None:
        for path, content in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "protocol.file.allow=always", *arguments]
        done = subprocess.run(command, cwd=self.root, check=True, capture_output=True)
        return os.fsdecode(done.stdout)

    def init(self) -> None:
        self.git("init", "-q", "-b", "main")

    def commit(self) -> None:
        self.git("add", "-A")
        self.git(
            "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "x"
        )

    def twin_without_git(self) -> Tree:
        """Copy the folder, links as links, less every .git."""
        copy = self.root.with_name(self.root.name + "-twin")
        shutil.copytree(self.root, copy, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        return Tree(copy)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[[str], Tree]:
    return lambda name: Tree(tmp_path / name)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "project")


@pytest.fixture
def checkout(tree: Tree) -> Tree:
    tree.init()
    return tree
