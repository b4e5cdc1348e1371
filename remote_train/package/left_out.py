"""Folders that never travel: version control, environments, caches, and records of earlier runs.

A name alone is not enough where people use it for code of their own (`venv`, `env`, `wandb`, `runs`): there the
content decides. The same rules serve a git listing and a walk of the disk.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LEFT_OUT_NAMES = frozenset(
    {
        ".git",
        "__pycache__",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".ipynb_checkpoints",
        "node_modules",
    },
)
RECORD_KEY = b'"remote_train_format"'  # the first key of our runs/ID/run.json
_WANDB_RUN = re.compile(r"(?:offline-)?run-\d{8}_.*|latest-run", re.DOTALL)


def is_left_out(path: str, children: Collection[str]) -> bool:
    """Say by its name and the names in it whether a folder (not the project itself) stays at home."""
    name = path.rpartition("/")[2]
    if name in LEFT_OUT_NAMES or "pyvenv.cfg" in children or "conda-meta" in children:
        return True
    return name == "wandb" and any(map(_WANDB_RUN.fullmatch, children))


def read_left_out(root: str, folders: Collection[str], names: Mapping[str, Collection[str]]) -> set[str]:
    """Choose the folders of a listing that never travel; `names` are the files in them. Reads our run.json files."""
    chosen = {folder for folder, files in names.items() if "pyvenv.cfg" in files}
    for folder in folders:
        parent, _, name = folder.rpartition("/")
        if name in LEFT_OUT_NAMES or (parent == "runs" and read_is_record(root, folder)):
            chosen.add(folder)
        elif parent and (name == "conda-meta" or _is_wandb_run(parent, name)):
            chosen.add(parent)
    return chosen - {""}


def read_is_record(root: str, folder: str) -> bool:
    """Say whether a folder `runs/ID` holds the records of a run of ours."""
    try:
        with Path(root, folder, "run.json").open("rb") as file:
            return RECORD_KEY in file.read(4096)
    except OSError:  # no such file, or none that could be packaged either
        return False


def _is_wandb_run(parent: str, name: str) -> bool:
    return parent.rpartition("/")[2] == "wandb" and _WANDB_RUN.fullmatch(name) is not None
