from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_train.config.families import Family, read_family
from remote_train.config.project import (
    PROJECT_FILE,
    ProjectPlace,
    ProjectSpec,
    find_project,
    make_project_name,
    read_project,
)
from remote_train.config.project_file import render_project_file
from remote_train.errors import ConfigError, PackageError
from tests.config.bad_files import BadFile, check_problems, read_bad_files

BAD = read_bad_files("bad_projects.txt")
FULL = """\
project = "shakespeare"
script = "src/train.py"
args = ["config/train_shakespeare_char.py", "--x=/etc/../y"]
checkpoints = ["out*/ckpt.pt"]
resume_args = ["--init_from=resume"]
[device.cpu]
args = ["--device=cpu", "--compile=False"]
[device.cuda]
args = ["--compile=True"]
[package]
include = ["data/*/*.bin"]
exclude = ["*.tmp", "!keep.tmp"]
data = ["data/openwebtext/"]
persist = ["./data/mnist", ".cache"]
max_mb = 300
[env]
forward = ["WANDB_PROJECT"]
secret = ["WANDB_API_KEY"]
"""
FULL_SPEC = ProjectSpec(
    project="shakespeare",
    script="src/train.py",
    args=("config/train_shakespeare_char.py", "--x=/etc/../y"),
    checkpoints=("out*/ckpt.pt",),
    resume_args=("--init_from=resume",),
    device_args={"cpu": ("--device=cpu", "--compile=False"), "cuda": ("--compile=True",)},
    include=("data/*/*.bin",),
    exclude=("*.tmp", "!keep.tmp"),
    data=("data/openwebtext",),
    persist=("data/mnist", ".cache"),
    max_mb=300,
    env_forward=("WANDB_PROJECT",),
    env_secret=("WANDB_API_KEY",),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def root(home: Path) -> Path:
    (home / "work" / "My Project").mkdir(parents=True)
    return home / "work" / "My Project"


def make(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def fail(root: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_project(root)
    return caught.value


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_file_names_line_key_and_hint(bad: BadFile, root: Path) -> None:
    path = make(root / PROJECT_FILE, bad.text)
    check_problems(fail(root).problems, path, bad)


@pytest.mark.parametrize(
    "bad", [bad for bad in BAD if not bad.text.startswith("[")][:20], ids=lambda bad: bad.name
)
def test_the_same_in_pyproject(bad: BadFile, root: Path) -> None:
    header = '[project]\nname = "x"\n[tool.remote-train]\n'
    text = header + bad.text.replace("\n[", "\n[tool.remote-train.")
    path = make(root / "pyproject.toml", text)
    problems = fail(root).problems
    for problem, (line, message) in zip(problems, bad.expected, strict=True):
        assert problem.startswith(f"{path}:{line + 3}: tool.remote-train.")
        assert message in problem


def test_a_full_file_arrives(root: Path) -> None:
    source = make(root / PROJECT_FILE, FULL)
    spec = read_project(root)
    assert spec.source == source
    assert {**vars(spec), "source": None} == vars(FULL_SPEC)


def test_a_full_table_of_pyproject_arrives(root: Path) -> None:
    source = make(
        root / "pyproject.toml", "[tool.remote-train]\n" + FULL.replace("\n[", "\n[tool.remote-train.")
    )
    assert {**vars(read_project(root)), "source": None} == vars(FULL_SPEC)
    assert read_project(root).source == source


def test_no_file_means_defaults(root: Path) -> None:
    assert read_project(root) == ProjectSpec(project="my-project")
    make(root / "pyproject.toml", '[project]\nname = "remote-train-user"\n[tool.ruff]\n')
    assert read_project(root) == ProjectSpec(project="my-project")


def test_both_files_are_an_error_that_names_both(root: Path) -> None:
    make(root / PROJECT_FILE)
    make(root / "pyproject.toml", "[tool.remote-train]\n")
    (problem,) = fail(root).problems
    assert f"{root}/remote-train.toml" in problem
    assert f"{root}/pyproject.toml" in problem


@pytest.mark.parametrize("text", ["[tool]\nremote-train = 3\n", "[[tool.remote-train]]\n"])
def test_a_table_that_is_none(text: str, root: Path) -> None:
    make(root / "pyproject.toml", text)
    assert ": tool.remote-train: must be a table, not " in fail(root).problems[0]


@pytest.mark.parametrize("name", [PROJECT_FILE, "pyproject.toml"])
def test_what_is_no_toml_is_refused_with_its_place(name: str, root: Path) -> None:
    path = make(root / name, "[tool.remote-train]\nscript = \n")
    assert fail(root).problems == [f"{path}:2:10: Invalid value"]


def test_a_broken_pyproject_of_other_tools_is_not_our_matter(root: Path, home: Path) -> None:
    make(root / "pyproject.toml", "[tool.ruff\n")
    assert find_project(root, home).root == root
    assert read_project(root).source is None


def test_a_fifo_in_place_of_the_file_does_not_block(root: Path, home: Path) -> None:
    os.mkfifo(root / PROJECT_FILE)
    os.mkfifo(root / "pyproject.toml")
    assert find_project(root, home).root == root
    assert "is a FIFO, not a file" in fail(root).problems[0]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("nanoGPT", "nanogpt"),
        ("My Project", "my-project"),
        ("-_.x", "x"),
        ("Größe 2", "gr-e-2"),
        ("...", "project"),
        ("", "project"),
        ("a" * 80, "a" * 63),
        ("a.b_c-d", "a.b_c-d"),
    ],
)
def test_a_folders_name_is_made_safe(folder: str, name: str) -> None:
    assert make_project_name(folder) == name


@given(st.text(max_size=80))
def test_every_name_made_is_one_that_a_file_may_give(folder: str) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", make_project_name(folder))


# Where the project is


def test_the_nearest_project_file_upwards(root: Path, home: Path) -> None:
    make(root / PROJECT_FILE)
    make(root / "sub" / "deep" / "x.py")
    make(root / "sub" / ".git" / "HEAD")
    assert find_project(root / "sub" / "deep", home) == ProjectPlace(root, PurePosixPath("sub/deep"))
    make(root / "sub" / "pyproject.toml", "[tool.remote-train]\n")
    assert find_project(root / "sub" / "deep", home) == ProjectPlace(root / "sub", PurePosixPath("deep"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_else_gits_top_level(kind: str, root: Path, home: Path) -> None:
    make(root / ".git" / "HEAD" if kind == "folder" else root / ".git", "gitdir: x")
    make(root / "sub" / "pyproject.toml", '[project]\nname = "x"\n')
    assert find_project(root / "sub", home) == ProjectPlace(root, PurePosixPath("sub"))


def test_else_the_current_folder(root: Path, home: Path) -> None:
    assert find_project(root, home) == ProjectPlace(root, PurePosixPath())


def test_a_link_to_a_folder_counts_as_the_folder(root: Path, home: Path, tmp_path: Path) -> None:
    make(root / PROJECT_FILE)
    make(root / "sub" / "x")
    (tmp_path / "link").symlink_to(root / "sub")
    assert find_project(tmp_path / "link", home) == ProjectPlace(root, PurePosixPath("sub"))


@pytest.mark.parametrize("marker", [PROJECT_FILE, ".git"])
def test_home_is_refused_also_from_below(marker: str, root: Path, home: Path) -> None:
    make(home / marker)
    for folder in (home, root):
        with pytest.raises(PackageError, match="the project would be") as caught:
            find_project(folder, home)
        assert caught.value.exit_code == 20
        assert caught.value.hint


def test_home_and_the_root_are_refused_without_any_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home)
    for folder, its_home in ((home, home), (home, tmp_path / "link"), (Path("/"), home)):
        with pytest.raises(PackageError, match="the project would be"):
            find_project(folder, its_home)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="cannot be used"):
        find_project(tmp_path / "gone", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_that_another_user_planted_above_is_refused(root: Path, home: Path) -> None:
    os.chown(make(root.parent / PROJECT_FILE), 12345, -1)
    with pytest.raises(PackageError, match="belongs to another user") as caught:
        find_project(root, home)
    os.chown(root, 12345, -1)
    assert find_project(root, home).root == root.parent
    type_what_is_hinted(caught.value)
    assert find_project(root, home).root == root


def type_what_is_hinted(error: PackageError) -> None:
    typed = re.search(r"`(touch [^`]+)`", error.hint or "")
    assert typed
    subprocess.run(shlex.split(typed[1]), check=True)


def test_a_home_that_git_knows_is_no_project_and_what_to_type_makes_one(home: Path) -> None:
    (home / ".git").mkdir()
    (home / "my work").mkdir()
    with pytest.raises(PackageError, match="itself") as caught:
        find_project(home / "my work", home)
    type_what_is_hinted(caught.value)
    assert find_project(home / "my work", home).root == home / "my work"


def test_my_own_file_in_a_folder_is_enough(root: Path, home: Path) -> None:
    make(root / PROJECT_FILE, FULL)
    assert read_project(find_project(root, home).root).project == "shakespeare"


# init


def test_the_rendered_file_of_a_family_reads_back(root: Path) -> None:
    make(
        root / "train.py",
        "device = 'cuda'\ncompile = True\ninit_from = 'x'\nexec(open('configurator.py').read())\n",
    )
    args = ["config/x.py", "--dataset=shakespeare_char", "--out_dir=out-x"]
    family = read_family(root, "train.py", args)
    assert family is not None
    make(root / PROJECT_FILE, render_project_file("nano", "train.py", args, family))
    spec = read_project(root)
    assert (spec.project, spec.script, spec.args) == ("nano", "train.py", tuple(args))
    assert spec.device_args == family.device_args == {"cpu": ("--device=cpu", "--compile=False"), "cuda": ()}
    assert spec.checkpoints == family.checkpoints == ("out-x/ckpt.pt",)
    assert spec.include == family.include
    assert spec.resume_args == ("--init_from=resume",)


def test_the_rendered_file_of_a_stranger_reads_back_and_shows_every_key(root: Path) -> None:
    text = render_project_file("x", None)
    make(root / PROJECT_FILE, text)
    assert read_project(root) == ProjectSpec(
        project="x", device_args={"cpu": (), "cuda": ()}, source=root / PROJECT_FILE
    )
    keys = "project script module args checkpoints resume_args include exclude data persist max_mb forward secret"
    assert all(key in text for key in keys.split())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), max_size=4
    )
)
def test_any_arguments_survive_rendering(root: Path, args: list[str]) -> None:
    make(root / PROJECT_FILE, render_project_file("x", "a b.py", args, Family("nanogpt")))
    assert read_project(root).args == tuple(args)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.integers(0, len(FULL)), st.integers(0, 10), st.text('[]{}="\n.,#a1', max_size=4))
def test_a_mutated_file_is_read_or_refused(root: Path, start: int, length: int, piece: str) -> None:
    path = make(root / PROJECT_FILE, FULL[:start] + piece + FULL[start + length :])
    problems = read_problems(root)
    assert all(problem.startswith(str(path)) for problem in problems)


def read_problems(root: Path) -> list[str]:
    try:
        assert isinstance(read_project(root), ProjectSpec)
    except ConfigError as error:
        return error.problems
    return []
