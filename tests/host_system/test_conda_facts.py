"""Environments of conda are found by name or folder, without conda; made roots, Pythons that are links to a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from remote_train.host import conda, pythons


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("CONDA_EXE", "MAMBA_ROOT_PREFIX", "CONDA_ENVS_DIRS", "CONDA_ENVS_PATH", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(conda, "ROOTS", tuple(root for root in conda.ROOTS if root.startswith("~")))
    return folder


def make_environment(prefix: Path) -> str:
    """Make an environment: its bin/python is a link, its torch a version file on the path of nobody."""
    (prefix / "bin").mkdir(parents=True)
    (prefix / "conda-meta").mkdir()
    (prefix / "bin" / "python").symlink_to(sys.executable)
    return str(prefix)


def test_by_name_in_the_usual_roots(home: Path) -> None:
    root = home / "miniconda3"
    base = make_environment(root)
    torch = make_environment(root / "envs" / "torch")

    assert conda.find_environment("torch") == torch
    assert conda.find_environment("base") == base
    assert conda.find_environment("other") is None
    assert conda.explain_missing("other").endswith("other: there are base, torch")


def test_where_conda_lists_them(home: Path) -> None:
    far = make_environment(home / "far" / "torch")
    (home / ".conda").mkdir()
    (home / ".conda" / "environments.txt").write_text(f"/gone/torch\n{far}\n")

    assert conda.find_environment("torch") == far
    named = make_environment(home / "miniconda3" / "envs" / "torch")
    assert conda.find_environment("torch") == named, "a name is looked up in its folders, as conda does"


@pytest.mark.parametrize(
    "text",
    [
        "channels:\n  - nvidia\nenvs_dirs:\n  - {}   # the large disk\n  - ~/more\nauto: false\n",
        "envs_dirs: ['{}', \"/b\"]\n",
        "envs_dirs:\n- {}\n",
    ],
)
def test_folders_of_a_condarc(home: Path, text: str) -> None:
    torch = make_environment(home / "large" / "torch")
    (home / ".condarc").write_text(text.format(home / "large"))

    assert conda.find_environment("torch") == torch


def test_roots_of_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = make_environment(home / "a" / "envs" / "one"), make_environment(home / "b" / "envs" / "two")
    monkeypatch.setenv("CONDA_EXE", str(home / "a" / "bin" / "conda"))
    monkeypatch.setenv("MAMBA_ROOT_PREFIX", str(home / "b"))

    assert (conda.find_environment("one"), conda.find_environment("two")) == (one, two)


def test_by_folder(home: Path) -> None:
    torch = make_environment(home / "somewhere" / "torch")

    assert conda.find_environment("~/somewhere/torch") == torch
    assert conda.find_environment("~/nowhere/torch") is None


def test_what_activation_sets(home: Path) -> None:
    prefix = make_environment(home / "miniconda3" / "envs" / "torch")
    state = {"env_vars": {"HF_HOME": "/data/hf", "number": 3, "": "x"}}
    Path(prefix, "conda-meta", "state").write_text(json.dumps(state))
    environment = {"PATH": "/bin", "HOME": "/h"}

    conda.activate(environment, prefix)

    assert environment == {
        "HOME": "/h",
        "PATH": f"{prefix}/bin:/bin",
        "CONDA_PREFIX": prefix,
        "CONDA_DEFAULT_ENV": "torch",
        "CONDA_SHLVL": "1",
        "HF_HOME": "/data/hf",
    }


def test_as_a_candidate(home: Path) -> None:
    prefix = make_environment(home / "miniconda3" / "envs" / "torch")
    found, missing = pythons.read_pythons(["conda:torch", "conda:nowhere"])

    assert (found["path"], found["conda"]) == (f"{prefix}/bin/python", prefix)
    assert found["version"] == ".".join(map(str, sys.version_info[:3]))
    assert missing["error"] == "there is no conda environment nowhere: there are base, torch"


MICROMAMBA = os.environ.get("REMOTE_TRAIN_TEST_CONDA", "")


@pytest.mark.slow
@pytest.mark.skipif(not MICROMAMBA, reason="REMOTE_TRAIN_TEST_CONDA names no conda")
def test_a_real_conda_knows_the_same_environments() -> None:
    answer = subprocess.run([MICROMAMBA, "env", "list", "--json"], capture_output=True, check=True)
    for prefix in json.loads(answer.stdout)["envs"]:
        assert conda.find_environment(Path(prefix).name) == prefix
