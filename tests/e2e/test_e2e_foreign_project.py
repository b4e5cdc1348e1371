"""A project that nobody prepared: what of it arrives on the host, what never leaves the laptop, what is sent twice."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, Laptop, commit, run_git, write_project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(110)]

SECRETS = {
    ".env": "TOKEN=canary-7f3a\n",
    ".env.production": "TOKEN=canary-7f3a\n",
    "deploy/id_ed25519": "canary-7f3a\n",
    "deploy/server.pem": "canary-7f3a\n",
    ".netrc": "machine x password canary-7f3a\n",
}
TREE: dict[str, str | bytes] = {
    "train.py": "import model\nprint('as committed')\n",
    "model.py": "WEIGHT = 1\n",
    "with space/ünïcode ☃.txt": "snow\n",
    "-rf": "a name like an option\n",
    "semi;colon $(touch x)/`y`.py": "pass\n",
    "sub/deep/er/__init__.py": "",
    "data/train.bin": b"\0\1\2" * 50_000,
    "data/notes.md": "kept\n",
    ".gitignore": "*.bin\n/build/\n",
    "build/junk.o": "junk",
    "tools/run.sh": "#!/bin/sh\n",
    "keep/.hidden": "hidden\n",
}


@pytest.fixture
def checkout(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A git checkout with files (5,000 where it matters), a submodule, links, secrets, and work that is not committed."""
    library = write_project(tmp_path / "library", {"lib.py": "VALUE = 42\n", "more/x.txt": "x\n"}, git=True)
    root = tmp_path / "my project"
    many = {f"many/{n % 50:02d}/{n:04d}.txt": f"{n}\n" for n in range(getattr(request, "param", 100))}
    write_project(root, TREE | many)
    (root / "tools/run.sh").chmod(0o755)
    (root / "link.py").symlink_to("model.py")
    (root / "away").symlink_to("/etc/hostname")
    run_git(root, "init", "-q")
    run_git(root, "submodule", "add", "-q", str(library), "third party/lib")
    commit(root)
    write_project(
        root, {"train.py": "print('edited')\n", "untracked.py": "pass\n", "loose/a b.txt": "1", **SECRETS}
    )
    return root


def read_tree(root: Path) -> dict[str, bytes | str]:
    """Return each path below a folder with its contents, or where it leads."""
    found: dict[str, bytes | str] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("checkout", [500, pytest.param(5000, marks=pytest.mark.slow)], indirect=True)
def test_what_arrives_and_what_does_not(laptop: Laptop, box: Box, checkout: Path) -> None:
    done = laptop.ok(checkout, "run", "train.py")

    assert done.out == b"edited\n"
    run = done.run_id()
    arrived = read_tree(box.code(run))
    tracked = run_git(checkout, "ls-files", "-z", "--recurse-submodules").split("\0")
    others = ["untracked.py", "loose/a b.txt"]
    expected = {name for name in [*tracked, *others] if name} - {"away"}
    assert set(arrived) == expected
    for name in expected:
        source = checkout / name
        wanted = str(source.readlink()) if source.is_symlink() else source.read_bytes()
        assert arrived[name] == wanted, name
    assert arrived["third party/lib/lib.py"] == b"VALUE = 42\n"
    assert (box.code(run) / "tools/run.sh").stat().st_mode & stat.S_IXUSR
    # every one of them is named, and nothing of their contents is anywhere on the host
    for name in SECRETS:
        assert name in done.err, name
    assert "away" in done.err
    everything = b"".join(path.read_bytes() for path in box.root.rglob("*") if path.is_file())
    assert b"canary-7f3a" not in everything


def test_ignored_data_is_named_and_the_line_to_add_works(laptop: Laptop, box: Box, checkout: Path) -> None:
    first = laptop.ok(checkout, "run", "train.py")
    (line,) = [text for text in first.err.splitlines() if "data stays here" in text]
    assert "150 kB" in line
    assert not (box.code(first.run_id()) / "data/train.bin").exists()
    again = laptop.ok(checkout, "run", "train.py")
    assert "stays here" not in again.err  # it is news only once

    include = line.rpartition("to take it along: ")[2].removesuffix(" under [package]")
    (checkout / "remote-train.toml").write_text(f"[package]\n{include}\n")
    done = laptop.ok(checkout, "run", "train.py")

    arrived = (box.code(done.run_id()) / "data/train.bin").read_bytes()
    assert arrived == (checkout / "data/train.bin").read_bytes()


@pytest.mark.parametrize("checkout", [500, pytest.param(5000, marks=pytest.mark.slow)], indirect=True)
def test_one_changed_file_is_all_that_is_sent(laptop: Laptop, box: Box, checkout: Path) -> None:
    first = laptop.ok(checkout, "run", "--json", "train.py").event("package")
    before = box.blobs()
    (checkout / "many/07/0007.txt").write_text("changed\n")

    second = laptop.ok(checkout, "run", "--json", "train.py")

    assert second.event("package")["files"] == first["files"]
    assert second.event("package")["package"] != first["package"]
    assert box.blobs() - before == {hashlib.sha256(b"changed\n").hexdigest()}
    assert before <= box.blobs()
    run = second.event("started")["run"]
    assert (box.code(run) / "many/07/0007.txt").read_text() == "changed\n"


def test_the_commit_and_what_was_not_committed_are_recorded(laptop: Laptop, checkout: Path) -> None:
    laptop.ok(checkout, "run", "train.py")

    shown = laptop.ok(checkout, "show", "--json").event("run")

    assert shown["commit"] == run_git(checkout, "rev-parse", "HEAD").strip()
    assert shown["dirty"] is True


def test_nothing_of_the_project_is_changed_here_but_the_run_s_own_folder(
    laptop: Laptop, checkout: Path
) -> None:
    before = read_tree(checkout)

    laptop.ok(checkout, "run", "train.py")

    after = read_tree(checkout)
    new = {name for name in after if name not in before}
    assert {name.split("/")[0] for name in new} == {"runs"}
    assert {name: after[name] for name in before} == before
    assert "runs" not in run_git(checkout, "status", "--porcelain", "--untracked-files=all")


def test_pulled_files_are_never_sent_back_nor_talked_about(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": "open('ckpt.pt', 'w').write('weights')\n"}, git=True)
    laptop.ok(project, "run", "train.py")

    second = laptop.ok(project, "run", "train.py")

    assert "stays here" not in second.err
    assert "runs" not in {path.name for path in box.code(second.run_id()).iterdir()}


def test_a_sub_folder_is_where_the_run_works(laptop: Laptop, project: Path) -> None:
    script = "import os, sys\nsys.path.insert(0, '../..')\nimport shared\nprint(os.path.relpath(os.getcwd(), shared.HERE))\nopen('ckpt.pt', 'w').write('x')\n"
    write_project(
        project,
        {
            "shared.py": "import os\nHERE = os.path.dirname(os.path.abspath(__file__))\n",
            "exp/a/train.py": script,
        },
        git=True,
    )

    done = laptop.ok(project / "exp" / "a", "run", "train.py")

    assert done.out == b"exp/a\n"
    assert (project / "runs" / done.run_id() / "files" / "exp" / "a" / "ckpt.pt").read_text() == "x"


def test_a_project_too_large_is_refused_with_its_biggest_files(
    laptop: Laptop, box: Box, project: Path
) -> None:
    write_project(project, {"train.py": "pass", "weights.dat": b"w" * 3_000_000})
    (project / "remote-train.toml").write_text("[package]\nmax_mb = 2\n")

    done = laptop.type(project, "run", "train.py").expect(20)

    assert "weights.dat" in done.err
    assert not (box.root / "runs").exists() or not list((box.root / "runs").iterdir())
    assert not (project / "runs").exists()


def test_home_is_no_project(laptop: Laptop) -> None:
    (laptop.home / "train.py").write_text("pass")

    done = laptop.type(laptop.home, "run", "train.py").expect(20)

    assert "hint:" in done.err


def test_include_and_exclude(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(
        project,
        {"train.py": "pass", ".gitignore": "*.bin\n", "a.bin": "a", "b.bin": "b", "docs/big.md": "text"},
        git=True,
    )

    done = laptop.ok(project, "run", "--include", "a.bin", "--exclude", "docs", "train.py")

    assert set(read_tree(box.code(done.run_id()))) == {"train.py", ".gitignore", "a.bin"}


def test_a_script_that_git_ignores_is_said_to_be_so(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "pass", ".gitignore": "train.py\n"}, git=True)

    done = laptop.type(project, "run", "train.py").expect(20)

    assert "git check-ignore -v train.py" in done.err


def test_data_folders_and_persistent_ones_are_links(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    there = write_project(tmp_path / "ssd", {"train.bin": "on the host"})
    laptop.write_hosts(
        f'default = ["box"]\n[hosts.box]\n{box.describe()}[hosts.box.data]\n"data/owt" = "{there}"\n'
    )
    script = (
        "import pathlib\n"
        "print(pathlib.Path('data/owt/train.bin').read_text())\n"
        "count = pathlib.Path('cache/count')\n"
        "count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))\n"
        "print('run number', count.read_text())\n"
    )
    write_project(project, {"train.py": script, "data/owt/train.bin": "on the laptop"})
    (project / "remote-train.toml").write_text('[package]\ndata = ["data/owt"]\npersist = ["cache"]\n')

    outputs = [laptop.ok(project, "run", "train.py").out.decode() for _ in range(2)]

    assert outputs == ["on the host\nrun number 1\n", "on the host\nrun number 2\n"]
    assert hashlib.sha256(b"on the laptop").hexdigest() not in box.blobs()


def test_data_that_lies_nowhere_on_the_host_is_refused_before_anything_happens(
    laptop: Laptop, project: Path
) -> None:
    write_project(project, {"train.py": "pass"})

    done = laptop.type(project, "run", "--data", "data/owt", "train.py").expect(2)

    assert "data/owt" in done.err
    assert "[hosts.box.data]" in done.err
    assert not (project / "runs").exists()
