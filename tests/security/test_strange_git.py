"""A repository that came with its config, in an archive: nothing that stands in it is run here."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import PackageError
from remote_train.package.git_tree import choose_git_environment, read_dirty_diff
from remote_train.package.select_files import Rules, select_files

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def git(folder: Path, *words: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    environment = choose_git_environment(os.environ) | {"GIT_ALLOW_PROTOCOL": "file"}
    subprocess.run(["git", *plain, *words], cwd=folder, env=environment, check=True, capture_output=True)


def make_repository(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / "a.py").write_text("a = 1\n")
    (folder / "b.py").write_text("b = 1\n")
    (folder / ".gitattributes").write_text("* diff=evil\na.py filter=evil\nb.py filter=other\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")


def look(project: Path) -> tuple[str, ...]:
    selection = select_files(project, Rules())
    read_dirty_diff(project, 1 << 20)
    return selection.files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_repository(tmp_path / "p")
    return tmp_path / "p"


KEYS = (
    *("filter.evil.clean", "filter.evil.smudge", "Filter.other.process"),
    *("diff.evil.command", "diff.evil.textconv", "diff.external", "core.fsmonitor"),
    *("core.pager", "core.sshCommand", "core.hooksPath", "core.editor", "gpg.program"),
)


@pytest.mark.parametrize("filler", [b"", b"#" * (5 << 20) + b"\n"], ids=["passed over", "long"])
def test_a_git_folder_that_is_none_and_a_long_config_hide_nothing(
    tmp_path: Path, project: Path, filler: bytes
) -> None:
    below = project / "below"
    if not filler:
        (below / ".git").mkdir(parents=True)
        (below / ".git" / "config").write_text("[core]\n")
    config = project / ".git" / "config"
    config.write_bytes(config.read_bytes() + filler)
    git(project, "config", "--file", str(config), "filter.evil.clean", f"touch {tmp_path}/ran; cat")
    (project / "a.py").write_text("a = 2\n")
    look(project if filler else below)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["own", "included", "inside"])
def test_its_config_runs_nothing(tmp_path: Path, project: Path, place: str) -> None:
    inside, more = project / "inside", tmp_path / "more"
    if place == "inside":
        make_repository(inside)
        git(project, "submodule", "add", "-q", "./inside", "inside")
        git(project, "commit", "-qm", "y")
    config = {"own": project / ".git" / "config", "included": more, "inside": inside / ".git" / "config"}
    for key in KEYS:
        git(project, "config", "--file", str(config[place]), key, f"touch {tmp_path}/ran-{key}; cat")
    if place == "included":
        git(project, "config", "include.path", str(more))
    for folder in (project, *([inside] if place == "inside" else ())):
        (folder / "a.py").write_text("a = 2\n")
        (folder / "b.py").write_text("b = 2\n")
    assert {"a.py", "b.py"} <= set(look(project))
    assert list(tmp_path.glob("ran-*")) == []


def test_a_folder_that_git_takes_for_a_repository_runs_nothing(tmp_path: Path, project: Path) -> None:
    """It comes with a plain clone: its files are like any others."""
    inner, canary = project / "inner", tmp_path / "canary"
    shutil.copytree(project / ".git", inner)
    git(inner, "config", "--file", "config", "core.bare", "false")
    git(inner, "config", "--file", "config", "core.worktree", str(inner))
    git(inner, "config", "--file", "config", "filter.evil.clean", f"touch {canary}; cat")
    (inner / "a.py").write_text("a = 2\n")
    (inner / ".gitattributes").write_text("* filter=evil\n")
    look(inner)
    assert not canary.exists()


def test_what_a_partial_clone_lacks_is_not_fetched(tmp_path: Path, project: Path) -> None:
    canary = tmp_path / "canary"
    for key, value in (
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.url", "ssh://host/x"),
        ("core.sshCommand", f"touch {canary}; false"),
    ):
        git(project, "config", key, value)
    for folder in (project / ".git" / "objects").glob("??"):
        shutil.rmtree(folder)
    (project / "a.py").write_text("a = 2\n")
    look(project)
    assert not canary.exists()


def test_a_filter_that_cannot_be_switched_off_is_told(project: Path) -> None:
    git(project, "config", "filter.a=b.clean", "cat")
    with pytest.raises(PackageError, match="cannot be switched off"):
        look(project)
