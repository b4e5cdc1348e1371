"""Files are closed to others whatever the umask, on both sides; the training has its user's umask; open places are refused."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from remote_train import private, records
from remote_train.config.hosts_file import read_hosts
from remote_train.config.project import find_project
from remote_train.config.toml_file import read_toml
from remote_train.errors import ConfigError, PackageError
from remote_train.host import store
from tests.e2e.machines import Laptop, known_line, running_box, write_project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = """
import os, pathlib
pathlib.Path("out").mkdir()
pathlib.Path("out/ckpt.pt").write_bytes(b"x" * 100)
pathlib.Path("other.txt").write_text("made by the training")
print(oct(os.umask(0)))
"""


def list_open(root: Path, *, apart: tuple[str, ...] = ()) -> list[str]:
    """Return what below a folder, and the folder itself, anybody but its owner may do anything with; links aside."""
    found = []
    for path in (root, *root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or any(part in path.relative_to(root).parts for part in apart):
            continue
        if mode & 0o077:
            found.append(f"{stat.S_IMODE(mode):04o} {path.relative_to(root)}")
    return found


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """The umask of this process."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.sshd
@pytest.mark.parametrize(("given", "trained"), [("000", 0o000), ("777", 0o077)])
def test_a_run_leaves_nothing_open_on_either_side(
    tmp_path: Path, laptop: Laptop, project: Path, given: str, trained: int
) -> None:
    write_project(project, {"train.py": SCRIPT, "data.txt": "data"})
    there = f'ForceCommand umask {given}; eval "$SSH_ORIGINAL_COMMAND"'
    with running_box(tmp_path / "open", [there]) as box:
        laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe()}')
        laptop.trust(known_line(box.sshd))
        laptop.command = ("sh", "-c", f'umask {given}; exec "$0" "$@"', *laptop.command)
        options = ["--checkpoints", "out/*.pt", "--secret", "TOKEN_OF_MINE"]
        done = laptop.ok(project, "run", *options, "train.py", env={"TOKEN_OF_MINE": "a secret of mine"})
        assert done.out == f"{oct(trained)}\n".encode()
        run = done.run_id()
        # `code` holds the training's own files, in a folder that is closed itself.
        assert list_open(box.root, apart=("code", "__pycache__")) == []
        assert stat.S_IMODE(box.code(run).stat().st_mode) == 0o700
        assert (box.code(run) / "other.txt").stat().st_mode & 0o777 == 0o666 & ~trained
    assert list_open(project / "runs" / run, apart=("files",)) == []
    assert (project / "runs" / run / "files" / "out" / "ckpt.pt").stat().st_mode & 0o600 == 0o600
    for kind in ("state", "cache"):
        assert list_open(laptop.home / kind / "remote-train") == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], indirect=True)
@pytest.mark.usefixtures("umask")
def test_folders_and_files_of_ours_do_not_ask_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    private.make_private(folder)
    with private.open_append(folder / "file") as file:
        file.write(b"x")
    records.write_json(folder / "more.json", {})
    run = records.create_run(tmp_path / "project" / "runs", "run-1", {})
    assert list_open(tmp_path / "a") == []
    assert list_open(run.folder.parent) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o622])
def test_hosts_that_others_may_write_are_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text('[hosts.box]\naddress = ["box"]\n')
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        read_hosts(path)
    assert caught.value.exit_code == 2
    assert f"chmod go-w '{path}'" in str(caught.value.hint)
    assert read_toml(path).data["hosts"]  # as any project's file may be


def test_hosts_that_others_may_put_another_file_in_the_place_of_are_refused(tmp_path: Path) -> None:
    real, shared = tmp_path / "real", tmp_path / "shared"
    for folder in (real, shared / "deeper"):
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text('[hosts.box]\naddress = ["box"]\n')
    (shared / "link.toml").symlink_to(real / "hosts.toml")
    (real / "link.toml").symlink_to(shared / "deeper" / "hosts.toml")
    shared.chmod(0o777)
    for path in (shared / "deeper" / "hosts.toml", shared / "link.toml", real / "link.toml"):
        with pytest.raises(ConfigError) as caught:
            read_hosts(path)
        assert str(caught.value.hint) == f"chmod o-w '{shared}'"
    assert read_hosts(real / "hosts.toml").hosts
    shared.chmod(0o1777)  # as /tmp
    assert read_hosts(real / "link.toml").hosts


@pytest.mark.skipif(os.getuid() != 0, reason="to give a folder away takes root")
@pytest.mark.parametrize("name", [".git", "remote-train.toml"])
def test_what_another_user_put_above_a_project_does_not_make_it_larger(tmp_path: Path, name: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / name).mkdir() if name == ".git" else (tmp_path / name).touch()
    os.chown(tmp_path / name, 61234, 61234)
    with pytest.raises(PackageError, match="belongs to another user"):
        find_project(own, tmp_path.parent)


@pytest.mark.skipif(os.getuid() != 0, reason="to give a file away takes root")
def test_hosts_of_another_user_are_refused_and_of_root_are_not(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text('[hosts.box]\naddress = ["box"]\n')
    os.chown(path, 61234, 61234)
    with pytest.raises(ConfigError, match="belongs to another user"):
        read_hosts(path)


@pytest.mark.skipif(os.getuid() != 0, reason="to give a folder away takes root")
def test_a_state_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "remote-train"
    root.mkdir(mode=0o700)
    os.chown(root, 61234, 61234)
    with pytest.raises(PermissionError, match="belongs to another user"):
        store.open_root(str(root))
    assert list(root.iterdir()) == []


def test_a_state_folder_that_others_could_swap_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for root in (shared / "remote-train", shared / "deeper" / "remote-train"):
        with pytest.raises(PermissionError, match="everybody may write into that folder") as caught:
            store.open_root(str(root))
        assert caught.value.filename == str(shared)
        assert not root.exists()
    shared.chmod(0o1777)  # sticky, as /tmp: nobody renames what is another's
    store.open_root(str(shared / "remote-train"))
    assert list_open(shared / "remote-train") == []


def test_a_link_in_the_place_of_the_state_folder_is_looked_behind(tmp_path: Path) -> None:
    strange, root = tmp_path / "strange", tmp_path / "remote-train"
    strange.mkdir()
    (strange / "somebody's").touch()
    strange.chmod(0o755)
    root.symlink_to(strange)
    with pytest.raises(PermissionError, match="holds other things"):
        store.open_root(str(root))
    assert [path.name for path in strange.iterdir()] == ["somebody's"]
