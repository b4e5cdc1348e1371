"""What an environment is made of: which files count, and which do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remote_train.errors import PackageError
from remote_train.plan import name_script
from remote_train.recipes import find_header, parse_lock, parse_sources, read_recipe
from tests.e2e.machines import write_project

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "# /// script\n# dependencies = ['a']\n#\n# ///\n"


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("", None),
        ("import a\n", None),
        (f"#!/usr/bin/env python\n\n{HEADER}import a\n# ///\n", HEADER),
        ("# /// script\n# a = 1\nimport a\n# ///\n", None),
        ("# /// script\n#a = 1\n# ///\n", None),
        ("# /// other\n# a = 1\n# ///\n", None),
        (HEADER.replace("\n", "\r\n"), HEADER),
    ],
)
def test_headers_are_found_as_their_standard_says(text: str, header: str | None) -> None:
    assert find_header(text) == header


def test_a_lock_names_local_sources() -> None:
    text = """
[[package]]
name = "p"
source = { virtual = "." }

[[package]]
name = "a"
source = { editable = "packages/a" }

[[package]]
name = "b"
source = { path = "wheels/b-1-py3-none-any.whl" }

[[package]]
name = "c"
source = { registry = "https://example.org/simple" }
"""
    assert parse_lock(text) == [".", "packages/a", "wheels/b-1-py3-none-any.whl"]


def test_a_project_without_a_lock_names_them_too() -> None:
    sources = {
        "a": {"path": "a"},
        "b": [{"path": "b", "marker": "x"}, {"git": "c"}],
        "d": {"workspace": True},
    }
    assert parse_sources({"tool": {"uv": {"sources": sources}}}) == ["a", "b"]
    assert parse_sources({"tool": {"uv": 3}}) == []
    assert parse_sources({}) == []


def test_what_counts_is_the_lock_its_sources_and_what_uv_heeds(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": "[project]\n",
        "uv.lock": 'source = { directory = "lib" }\n',
        ".python-version": "3.11\n",
        "lib/pyproject.toml": "x",
        "lib/.venv/bin/python": "x",
        "lib/a/__pycache__/a.pyc": "x",
        "train.py": "x",
        "sub/script.py": HEADER,
    }
    write_project(tmp_path, files)

    recipe = read_recipe(tmp_path, "train.py")

    assert recipe is not None
    assert [part.path for part in recipe.parts] == [
        "pyproject.toml",
        "uv.lock",
        ".python-version",
        "lib/pyproject.toml",
    ]
    assert (recipe.script, recipe.frozen) == (None, True)
    script = read_recipe(tmp_path, "sub/script.py")
    assert script is not None
    assert [(part.path, part.text.decode()) for part in script.parts] == [("sub/script.py", HEADER)]
    assert (script.script, script.frozen) == ("sub/script.py", False)
    assert read_recipe(tmp_path / "sub", None) is None


@pytest.mark.parametrize(
    ("source", "words"), [("../lib", "leads out of it"), ("/lib", "leads out of it"), ("lib", "is not there")]
)
def test_sources_that_cannot_travel_are_refused(tmp_path: Path, source: str, words: str) -> None:
    write_project(tmp_path, {"pyproject.toml": f'[tool.uv.sources]\na = {{ path = "{source}" }}\n'})
    with pytest.raises(PackageError, match=words):
        read_recipe(tmp_path, None)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize(
    ("script", "source"), [("train.py", "."), ("sub/train.py", ".."), ("sub/train.py", "../")]
)
def test_a_script_may_need_the_project_it_lies_in(
    tmp_path: Path, script: str, source: str, *, locked: bool
) -> None:
    header = f"# /// script\n# [tool.uv.sources]\n# a = {{ path = '{source}' }}\n# ///\n"
    files = {"pyproject.toml": "[project]\n", "src/a.py": "x", ".env": "TOKEN=x", ".venv/pyvenv.cfg": "x"}
    lock = {f"{script}.lock": f'source = {{ editable = "{source}" }}\n'} if locked else {}
    root = write_project(tmp_path, {script: f"{header}print(1)\n", **lock, **files})

    recipe = read_recipe(root, script)

    assert recipe is not None
    assert sorted(part.path for part in recipe.parts) == sorted({script, "pyproject.toml", "src/a.py", *lock})
    assert all(part.source is not None for part in recipe.parts), "the script is a file of that project"
    assert recipe.script == script


def test_of_the_project_itself_a_script_gets_what_a_package_has(tmp_path: Path) -> None:
    header = "# /// script\n# [tool.uv.sources]\n# a = { path = '.' }\n# ///\n"
    files = {
        "train.py": header,
        "pyproject.toml": "[tool.remote-train.package]\nexclude = ['*.bin']\ndata = ['corpus']\ninclude = ['a/_version.py', '.env']\n",
        "a/__init__.py": "x",
        "a/runs/__init__.py": "x",
        ".gitignore": "customers.csv\nout/\n_version.py\n.env\n",
        "big.bin": "x",
        "corpus/text": "x",
    }
    root = write_project(tmp_path, files, git=True)
    before = read_recipe(root, "train.py")
    ignored = {"customers.csv": "x", "out/ckpt.pt": "x", ".env": "TOKEN=x", "a/_version.py": "1"}
    write_project(root, {**ignored, "a/new.py": "not added yet"})

    recipe = read_recipe(root, "train.py")

    assert before is not None
    assert recipe is not None
    more = {part.path for part in recipe.parts} - {part.path for part in before.parts}
    assert more == {"a/_version.py", "a/new.py"}
    assert sorted(part.path for part in before.parts) == [
        ".gitignore",
        "a/__init__.py",
        "a/runs/__init__.py",
        "pyproject.toml",
        "train.py",
    ]


def test_a_script_without_a_lock_has_no_editable_source(tmp_path: Path) -> None:
    header = "# /// script\n# [tool.uv.sources]\n# a = { path = '.', editable = true }\n# ///\n"
    root = write_project(tmp_path, {"train.py": header, "pyproject.toml": "[project]\n"})
    with pytest.raises(PackageError, match="nothing of it stays") as refused:
        read_recipe(root, "train.py")
    assert "`uv lock --script train.py`" in str(refused.value.hint)
    (root / "train.py.lock").write_text("")
    assert read_recipe(root, "train.py") is not None


def test_a_projects_own_folder_is_no_source_of_it(tmp_path: Path) -> None:
    lock = 'source = { virtual = "." }\nsource = { editable = "./" }\n'
    write_project(tmp_path, {"pyproject.toml": "[project]\n", "uv.lock": lock, "train.py": "x"})
    recipe = read_recipe(tmp_path, None)
    assert recipe is not None
    assert [part.path for part in recipe.parts] == ["pyproject.toml", "uv.lock"]


def test_a_link_takes_no_file_of_this_laptop_along(tmp_path: Path) -> None:
    (tmp_path / "id_ed25519").write_text("a key")
    root = write_project(
        tmp_path / "project",
        {"pyproject.toml": '[tool.uv.sources]\na = { path = "lib" }\n', "lib/pyproject.toml": "[project]\n"},
    )
    (root / "lib" / "inside").symlink_to("pyproject.toml")
    assert read_recipe(root, None) is not None
    (root / "lib" / "key").symlink_to(tmp_path / "id_ed25519")

    with pytest.raises(PackageError, match="leads out of it"):
        read_recipe(root, None)


def test_what_is_named_like_a_secret_stays_here(tmp_path: Path) -> None:
    sources = {
        "lib/pyproject.toml": "[project]\n",
        "lib/.env": "TOKEN=x",
        "lib/id_rsa": "x",
        "lib/.ssh/known": "x",
    }
    root = write_project(tmp_path, {"pyproject.toml": '[tool.uv.sources]\na = { path = "lib" }\n', **sources})
    recipe = read_recipe(root, None)
    assert recipe is not None
    assert [part.path for part in recipe.parts] == ["pyproject.toml", "lib/pyproject.toml"]


def test_the_script_that_will_run_is_named_from_the_projects_root() -> None:
    assert name_script("a.py", None, "b.py", "sub") == "sub/a.py"
    assert name_script(None, None, "b.py", "") == "b.py"
    assert name_script(None, "m", "b.py", "") is None
    assert name_script("../a.py", None, None, "sub") == "a.py"
