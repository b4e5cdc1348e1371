"""Which files travel: real checkouts, their twins without git, and everything a project can hold."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import PackageError
from remote_train.host.manifest_format import check_rows
from remote_train.package.manifest import make_rows
from remote_train.package.select_files import MOST_NOTICES, Rules, Selection, select_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.package.conftest import Tree

ODD = [
    "plain.py",
    "with space.py",
    "new\nline.py",
    "été.py",
    os.fsdecode(b"caf\xe9.py"),
    "-dash.py",
    "qu'o\"te.py",
]
OUR_RECORD = '{"remote_train_format": 1, "id": "x"}'


def choose(tree: Tree, *include: str, exclude: tuple[str, ...] = ()) -> Selection:
    selection = select_files(tree.root, Rules(include=include, exclude=exclude))
    assert list(selection.files) == sorted(set(selection.files))
    assert set(selection.files) == set(selection.stats) | set(selection.links)
    return selection


def told(selection: Selection, kind: str) -> list[str]:
    return [notice.path for notice in selection.notices if notice.kind == kind]


def test_tracked_changed_and_new_files_travel_and_deleted_ones_do_not(checkout: Tree) -> None:
    checkout.write_all({"a.py": "1", "gone.py": "2", "sub/b.py": "3", ".gitignore": "*.log\n"})
    checkout.commit()
    checkout.write_all({"a.py": "changed", "new.py": "", "x.log": ""})
    (checkout.root / "gone.py").unlink()
    selection = choose(checkout)
    assert selection.files == (".gitignore", "a.py", "new.py", "sub/b.py")
    assert selection.git is not None
    assert selection.git.dirty


def test_tracked_although_ignored_travels_with_git(checkout: Tree) -> None:
    checkout.write_all({".gitignore": "*.bin\n", "kept.bin": "x", "left.bin": "y"})
    checkout.git("add", "-f", "kept.bin")
    assert choose(checkout).files == (".gitignore", "kept.bin")


@pytest.mark.parametrize("with_git", [True, False], ids=["git", "walk"])
def test_odd_names_survive(tree: Tree, with_git: bool) -> None:
    tree.write_all(dict.fromkeys([*ODD, *(f"d {name}/{name}" for name in ODD)], "x"))
    if with_git:
        tree.init()
        tree.commit()
    assert set(choose(tree).files) == {*ODD, *(f"d {name}/{name}" for name in ODD)}


def test_five_thousand_files_and_the_twin_without_git(checkout: Tree) -> None:
    checkout.write_all(
        {f"p{n % 7}/q{n % 50}/f{n}.{'bin' if n % 9 == 0 else 'py'}": str(n) for n in range(5000)}
    )
    checkout.write_all(
        {".gitignore": "*.bin\n/p3/q1*/\n", "p2/.gitignore": "!*.bin\n", "p4/.gitignore": "*\n!q2/\n"}
    )
    with_git, without = choose(checkout), choose(checkout.twin_without_git())
    assert 3000 < len(with_git.files) < 5000
    assert with_git.files == without.files
    assert (with_git.git is None, without.git is None) == (False, True)


def test_a_project_that_is_a_folder_of_a_checkout(checkout: Tree, make_tree: Callable[[str], Tree]) -> None:
    checkout.write_all(
        {
            "top.py": "",
            "sub/a.py": "",
            "sub/data/x.bin": "x",
            ".gitignore": "*.bin\n/sub/b.py\n",
            "sub/b.py": "",
        }
    )
    checkout.commit()
    selection = choose(make_tree("project/sub"))
    assert selection.files == ("a.py",)
    assert [found.folder for found in selection.ignored] == ["data"]
    assert selection.git is not None
    assert not selection.git.dirty


def test_variables_of_a_git_hook_do_not_lead_elsewhere(
    checkout: Tree, make_tree: Callable[[str], Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_tree("other")
    other.init()
    checkout.write(a="")
    monkeypatch.setenv("GIT_DIR", str(other.root / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.root))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.root / "index"))
    assert choose(checkout).files == ("a",)


def test_submodules_and_repositories_inside_follow_their_own_rules(
    checkout: Tree, make_tree: Callable[[str], Tree]
) -> None:
    library = make_tree("library")
    library.init()
    library.write_all({"lib.py": "", ".gitignore": "*.tmp\n"})
    library.commit()
    checkout.write_all({"main.py": "", ".gitignore": "*.log\n"})
    checkout.git("submodule", "add", "-q", str(library.root), "vendor/lib")
    checkout.commit()
    shutil.copytree(library.root, checkout.root / "clone")
    checkout.write_all(
        {"vendor/lib/new.py": "", "vendor/lib/x.tmp": "", "vendor/lib/x.log": "", "clone/y.tmp": ""}
    )
    expected = {".gitignore", ".gitmodules", "main.py", "clone/.gitignore", "clone/lib.py"}
    expected |= {f"vendor/lib/{name}" for name in (".gitignore", "lib.py", "new.py", "x.log")}
    assert set(choose(checkout).files) == expected


def test_a_submodule_that_is_not_checked_out_is_told(
    checkout: Tree, make_tree: Callable[[str], Tree]
) -> None:
    library = make_tree("library")
    library.init()
    library.commit()
    checkout.git("submodule", "add", "-q", str(library.root), "lib")
    checkout.commit()
    checkout.git("submodule", "deinit", "-q", "-f", "lib")
    selection = choose(checkout)
    assert selection.files == (".gitmodules",)
    assert told(selection, "submodule") == ["lib"]


def test_a_repository_inside_a_folder_without_git(tree: Tree, make_tree: Callable[[str], Tree]) -> None:
    tree.write_all(
        {"a.py": "", "one/b.py": "", "one/b.tmp": "", "one/.gitignore": "*.tmp\n", ".gitignore": "*.log\n"}
    )
    inner = make_tree("project/two")
    inner.write_all({"c.py": "", "c.log": "", "c.tmp": "", ".gitignore": "*.tmp\n"})
    inner.init()
    assert {path for path in choose(tree).files if not path.endswith(".gitignore")} == {
        "a.py",
        "one/b.py",
        "two/c.py",
        "two/c.log",
    }


@pytest.mark.parametrize("with_git", [True, False], ids=["git", "walk"])
def test_folders_that_never_travel(tree: Tree, with_git: bool) -> None:
    if with_git:
        tree.init()
    tree.write_all(
        {
            "venv/pyvenv.cfg": "",
            "venv/lib/x.py": "",
            "deep/env/conda-meta/history": "",
            "deep/env/x.py": "",
            "env/settings.py": "",  # a folder of the user's own, whatever its name
            "src/__pycache__/a.pyc": "",
            ".ruff_cache/x": "",
            "web/node_modules/m/index.js": "",
            "wandb/run-20260101_101010-abc/files/x": "",
            "wandb/debug.log": "",
            "conf/wandb/default.yaml": "",
            "runs/one/run.json": OUR_RECORD,
            "runs/one/files/ckpt.pt": "",
            "runs/two/run.json": '{"mine": 1}',
            "runs/plot.py": "",
        }
    )
    expected = ("conf/wandb/default.yaml", "env/settings.py", "runs/plot.py", "runs/two/run.json")
    assert choose(tree).files == expected
    assert choose(tree, "venv/**", "**/*.pyc", "runs/**", "wandb/**").files == expected


def test_a_project_that_lies_in_an_environment_is_not_empty(tree: Tree) -> None:
    tree.write_all({"pyvenv.cfg": "", "train.py": ""})
    assert "train.py" in choose(tree).files


@pytest.mark.parametrize("with_git", [True, False], ids=["git", "walk"])
def test_secrets_stay_at_home_each_with_a_notice(tree: Tree, with_git: bool) -> None:
    secrets = [
        ".env",
        ".env.local",
        "certs/server.pem",
        "deploy/ID_RSA",
        ".aws/config",
        "x/.ssh/known_hosts",
        "kaggle.json",
    ]
    public = [".env.example", "certs/readme.md", "id_rsa.pub", "src/keys.py", "environment.yml"]
    tree.write_all(dict.fromkeys([*secrets, *public], "x"))
    if with_git:
        tree.init()
        tree.commit()
    selection = choose(tree)
    assert set(selection.files) == set(public)
    assert set(told(selection, "secret")) == set(secrets)


@pytest.mark.parametrize(
    ("include", "sent"),
    [
        ("certs/server.pem", True),
        ("./certs/server.pem", True),
        ("certs/*.pem", False),
        ("certs", False),
        ("certs/", False),
        ("**/server.pem", False),
        ("server.pem", False),
        ("certs/server.pe[m]", False),
    ],
)
def test_only_its_exact_path_sends_a_secret(checkout: Tree, include: str, sent: bool) -> None:
    checkout.write_all({"certs/server.pem": "x", ".gitignore": "*.pem"})
    selection = choose(checkout, include)
    assert ("certs/server.pem" in selection.files) is sent
    if sent:  # the line may be a stranger's
        assert "goes along" in next(notice.message for notice in selection.notices if notice.kind == "secret")


def test_many_notices_of_a_kind_are_counted(checkout: Tree) -> None:
    checkout.write_all({f"keys/{n}.key": "x" for n in range(50)})
    selection = choose(checkout)
    assert len(selection.notices) == MOST_NOTICES + 1
    assert selection.notices[-1].message.startswith("30 more")


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("data/*/*.bin", {"data/a/x.bin", "data/b/x.bin"}),
        ("data/a/*", {"data/a/x.bin", "data/a/meta.pkl", "data/a/deep/y.bin"}),
        ("data/**/*.bin", {"data/a/x.bin", "data/b/x.bin", "data/a/deep/y.bin"}),
        ("*.bin", {"data/a/x.bin", "data/b/x.bin", "data/a/deep/y.bin", "z.bin"}),
        ("data/a/meta.pkl", {"data/a/meta.pkl"}),
        ("data/a/", {"data/a/x.bin", "data/a/meta.pkl", "data/a/deep/y.bin"}),
        ("data/[!a]/*", {"data/b/x.bin"}),
        ("z.bin", {"z.bin"}),
        ("data/?/meta.???", {"data/a/meta.pkl"}),
    ],
)
@pytest.mark.parametrize("with_git", [True, False], ids=["git", "walk"])
def test_include_brings_ignored_files_back(
    tree: Tree, include: str, expected: set[str], with_git: bool
) -> None:
    if with_git:
        tree.init()
    files = ["data/a/x.bin", "data/a/meta.pkl", "data/a/deep/y.bin", "data/b/x.bin", "z.bin"]
    tree.write_all({**dict.fromkeys(files, "x"), "train.py": "", ".gitignore": "data/\n*.bin\n"})
    selection = choose(tree, include)
    assert set(selection.files) == {".gitignore", "train.py"} | expected
    assert not selection.notices


def test_exclude_takes_out_what_include_and_git_give(checkout: Tree) -> None:
    checkout.write_all(
        {
            "a/x.bin": "",
            "a/y.bin": "",
            "b/notes.md": "",
            "deep/er/notes.md": "",
            "big/1": "",
            ".gitignore": "*.bin\n",
        }
    )
    selection = choose(checkout, "a/*.bin", exclude=("a/y.*", "notes.md", "big/"))
    assert selection.files == (".gitignore", "a/x.bin")


def test_an_include_line_that_finds_nothing_is_told(checkout: Tree, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.bin").write_text("x")
    (checkout.root / "data").symlink_to(tmp_path / "outside")
    selection = choose(checkout, "data/*.bin", "typo/*.bin", "absent.bin")
    assert selection.files == ()
    assert told(selection, "include") == ["data/*.bin", "typo/*.bin", "absent.bin"]
    assert told(selection, "link") == ["data"]


@pytest.mark.parametrize("glob", ["/etc/*", "../x", "a/../../x", "~/x", "!x", "", "/", "a[", "a\\"])
@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_bad_glob_is_refused_by_name(checkout: Tree, glob: str, key: str) -> None:
    with pytest.raises(PackageError, match=key):
        select_files(checkout.root, Rules(include=(glob,)) if key == "include" else Rules(exclude=(glob,)))


@pytest.mark.parametrize("with_git", [True, False], ids=["git", "walk"])
def test_links(tree: Tree, with_git: bool) -> None:
    root = tree.root
    tree.write_all({"a/file.py": "", "b/other.py": ""})
    kept = {
        "to_file": ("a/file.py", "a/file.py"),
        "to_folder": ("a", "a"),
        "to_top": (".", "."),
        "a/up": ("../b/other.py", "../b/other.py"),
        "a/untidy": ("./..//b/./other.py", "../b/other.py"),
        "a/absolute": (str(root / "b/other.py"), "../b/other.py"),
        "absolute_top": (str(root), "."),
        "late_climb": ("a/../b/other.py", "b/other.py"),
        "late_climb_by_link": ("to_folder/../b", "b"),
        "dangling": ("not/there", "not/there"),
        "itself": ("itself", "itself"),
    }
    dropped = {
        "out": "../outside",
        "out_absolute": "/etc/passwd",
        "a/out": "../../outside",
        "out_and_in": "../project/a",
        "similar": str(root) + "-twin/x",
        "a/late_out": "../b/../../outside",
    }
    for path, (target, _) in kept.items():
        (root / path).symlink_to(target)
    for path, target in dropped.items():
        (root / path).symlink_to(target)
    if with_git:
        tree.init()
        tree.commit()
    selection = choose(tree)
    assert dict(selection.links) == {path: target for path, (_, target) in kept.items()}
    assert set(told(selection, "link")) == set(dropped)
    check_rows(make_rows({}, {}, selection.links))


def test_a_tracked_folder_that_became_a_link_is_a_link(checkout: Tree) -> None:
    checkout.write_all({"a/x.py": "", "b/x.py": ""})
    checkout.commit()
    shutil.rmtree(checkout.root / "a")
    (checkout.root / "a").symlink_to("b")
    selection = choose(checkout)
    assert selection.files == ("a", "b/x.py")
    assert selection.links == {"a": "b"}


def test_a_tracked_file_that_became_a_folder(checkout: Tree) -> None:
    checkout.write(a="")
    checkout.commit()
    (checkout.root / "a").unlink()
    checkout.write_all({"a/b.py": ""})
    assert choose(checkout).files == ("a/b.py",)


def test_special_files_are_left_out_with_a_notice(tree: Tree) -> None:
    tree.write(a="")
    os.mkfifo(tree.root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree.root / "socket"))
        selection = choose(tree)
        assert selection.files == ("a",)
        assert sorted(told(selection, "special")) == ["pipe", "socket"]
        tree.init()
        assert choose(tree).files == ("a",)  # git does not even list them


@pytest.mark.parametrize("stream", [1, 2])
def test_the_file_that_our_own_output_goes_to_stays(tree: Tree, stream: int) -> None:
    tree.write_all({"train.py": "", "run.log": ""})
    kept = os.dup(stream)
    with (tree.root / "run.log").open("ab") as log:
        os.dup2(log.fileno(), stream)
        try:
            selection = choose(tree)
        finally:
            os.dup2(kept, stream)
            os.close(kept)
    assert selection.files == ("train.py",)
    assert told(selection, "output") == ["run.log"]
    assert choose(tree).files == ("run.log", "train.py")


def test_a_tracked_file_that_became_a_fifo(checkout: Tree) -> None:
    checkout.write(a="", b="")
    checkout.commit()
    (checkout.root / "a").unlink()
    os.mkfifo(checkout.root / "a")
    selection = choose(checkout)
    assert selection.files == ("b",)
    assert told(selection, "special") == ["a"]


def test_a_conflict_lists_a_file_once(checkout: Tree) -> None:
    checkout.write(a="0")
    checkout.commit()
    checkout.git("checkout", "-q", "-b", "other")
    checkout.write(a="1")
    checkout.commit()
    checkout.git("checkout", "-q", "main")
    checkout.write(a="2")
    checkout.commit()
    with pytest.raises(Exception, match="merge"):
        checkout.git("merge", "-q", "other")
    assert choose(checkout).files == ("a",)


def test_a_checkout_of_another_user_is_read_without_git(checkout: Tree) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    checkout.write_all({"a.py": "", "x.log": "", ".gitignore": "*.log\n"})
    for path in (checkout.root, checkout.root / ".git"):
        os.chown(path, 65534, 65534)
    selection = choose(checkout)
    assert selection.files == (".gitignore", "a.py")
    (checkout.root / "sub dir").mkdir()
    for chosen in (selection, select_files(checkout.root / "sub dir", Rules())):
        (notice,) = [notice.message for notice in chosen.notices if notice.kind == "git"]
        assert f"safe.directory {shlex.quote(str(checkout.root))})" in notice


def test_a_project_in_a_folder_that_git_ignores(checkout: Tree, make_tree: Callable[[str], Tree]) -> None:
    checkout.write_all({".gitignore": "*\n!.gitignore\n"})
    inner = make_tree("project/build/inner")
    inner.write_all({"train.py": ""})
    selection = choose(inner)
    assert "ignores this whole folder" in selection.notices[0].message
    assert selection.files == ("train.py",)


def test_a_broken_repository_stops_with_gits_own_words(checkout: Tree) -> None:
    checkout.write(a="")
    checkout.commit()
    (checkout.root / ".git/index").write_bytes(b"broken")
    with pytest.raises(PackageError, match="index") as caught:
        choose(checkout)
    assert caught.value.hint


def test_an_empty_project(checkout: Tree) -> None:
    assert choose(checkout).files == ()
    assert choose(checkout.twin_without_git()).files == ()
