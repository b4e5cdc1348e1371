"""Find the project around the current folder and read its file, remote-train.toml or [tool.remote-train].

Where a project begins stands here; the schema of its file is in `project_schema`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from remote_train.config.project_spec import ProjectPlace, ProjectSpec
from remote_train.config.proven import make_key, recall, remember
from remote_train.config.toml_file import MAX_BYTES, TomlFile, read_toml
from remote_train.errors import ConfigError, PackageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.config.toml_lines import KeyPath

__all__ = ["PROJECT_FILE", "ProjectPlace", "ProjectSpec", "find_project", "make_project_name", "read_project"]

PROJECT_FILE = "remote-train.toml"
_TABLE = ("tool", "remote-train")


def find_project(cwd: Path, home: Path) -> ProjectPlace:
    """Find the nearest folder upwards with a project file, else git's top level, else the current folder.

    Raises PackageError for `/`, the home folder, and a project file above that another user planted.
    """
    try:
        folder = cwd.resolve(strict=True)
    except OSError as error:
        raise PackageError(f"{cwd}: the current folder cannot be used: {error.strerror}") from None
    root = _find_file_root(folder) or _find_git_root(folder) or folder
    if root in {home.resolve(), Path("/")}:
        raise PackageError(
            f"the project would be {root} itself, with everything in it",
            hint=f"cd into the project, or {_word_own(folder)}"
            if folder != root
            else "cd into the project's folder first",
        )
    return ProjectPlace(root, PurePosixPath(folder.relative_to(root).as_posix()))


def read_project(root: Path) -> ProjectSpec:
    """Read the project file of this folder; defaults when there is none. Raises ConfigError with every fault."""
    name = make_project_name(root.name)
    found = list(_read_files(root))
    if not found:
        return ProjectSpec(project=name)
    if len(found) > 1:
        raise ConfigError(
            [
                f"{root / PROJECT_FILE} and [tool.remote-train] in {root / 'pyproject.toml'}: both describe the project"
            ],
            hint="keep one of them",
        )
    file, prefix = found[0]
    key = make_key("project", [str(file.path), json.dumps(file.data, default=str), name])
    held = recall(key)
    if held is not None:
        return _make_spec(held, file.path)
    # Only a file that is new or has changed pays for pydantic.
    from remote_train.config.project_schema import make_project  # noqa: PLC0415 - see the line above

    spec = make_project(file, prefix, name)
    remember(key, {**vars(spec), "source": None})
    return spec


def _make_spec(held: dict[str, Any], source: Path) -> ProjectSpec:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in held.items()
    }
    fields["device_args"] = {device: tuple(args) for device, args in held["device_args"].items()}
    return ProjectSpec(**{**fields, "source": source})


def make_project_name(folder: str) -> str:
    """Make a project's name of its folder's: lower case, only a-z 0-9 . _ -, at most 63 characters."""
    safe = re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).lstrip("._-").rstrip("-")
    return safe[:63] or "project"


def _find_file_root(folder: Path) -> Path | None:
    for place in (folder, *folder.parents):
        if os.path.lexists(place / PROJECT_FILE):
            return _check_owner(place / PROJECT_FILE, folder)
        if _read_tool_table(place) is not None:
            return _check_owner(place / "pyproject.toml", folder)
    return None


def _check_owner(file: Path, folder: Path) -> Path:
    """Return the file's folder, unless another user put the file above ours, in /tmp for example."""
    owner = os.lstat(file).st_uid
    if file.parent != folder and owner not in {0, os.geteuid(), folder.stat().st_uid}:
        raise PackageError(
            f"{file} makes {file.parent} the project, and belongs to another user (uid {owner})",
            hint=f"{_word_own(folder)}; where you trust that user, `cd {shlex.quote(str(file.parent))}` first",
        )
    return file.parent


def _word_own(folder: Path) -> str:
    return f"`touch {shlex.quote(str(folder / PROJECT_FILE))}`: then this folder is a project of its own"


def _find_git_root(folder: Path) -> Path | None:
    """Find git's top level: `.git` is a folder, or a file in worktrees and submodules."""
    above = (place / ".git" for place in (folder, *folder.parents))
    found = next((place for place in above if os.path.lexists(place)), None)
    return None if found is None else _check_owner(found, folder)


def _read_files(root: Path) -> Iterator[tuple[TomlFile, KeyPath]]:
    if os.path.lexists(root / PROJECT_FILE):
        yield read_toml(root / PROJECT_FILE), ()
    file = _read_tool_table(root)
    if file is not None:
        yield file, _TABLE


def _read_tool_table(folder: Path) -> TomlFile | None:
    """Read pyproject.toml if it has our table; what other tools may have broken in theirs is not our matter."""
    path = folder / "pyproject.toml"
    if not _mentions_us(path):
        return None
    file = read_toml(path)
    tool: Any = file.data.get("tool")
    return file if isinstance(tool, dict) and "remote-train" in tool else None


def _mentions_us(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would block
            return False
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
    except OSError:  # missing, or unreadable: whoever owns it has not meant it for us
        return False
    return b"remote-train" in raw and b"tool" in raw
