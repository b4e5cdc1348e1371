"""What an environment is made of: a script's own header, or a project's pyproject.toml and uv.lock, with its local sources.

Reads files of this laptop; the host builds from nothing else. Nothing here decides what is installed: uv does, by these files.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote_train.config.project import read_project
from remote_train.errors import PackageError
from remote_train.host.recipe_format import MOST_FILES, is_inside
from remote_train.package.secret_names import is_secret_folder, is_secret_name
from remote_train.package.select_files import Rules, select_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PROJECT, LOCK = "pyproject.toml", "uv.lock"
BESIDE = (".python-version", "uv.toml")
"""Files that uv heeds beside these two."""
MOST_BYTES = 500_000_000
MOST_HEADER = 64 * 1024
_LEFT_OUT = {".git", ".venv", "venv", "__pycache__", "node_modules", "runs", ".mypy_cache", ".pytest_cache"}
_BEGIN, _END = "# /// script", "# ///"
_LOCAL = re.compile(r'^source = \{ (path|directory|editable|virtual) = "((?:[^"\\]|\\.)*)" \}', re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A file of a recipe: its path there, and its bytes, or where they lie here."""

    path: str
    sha256: str
    size: int
    source: Path | None
    text: bytes = b""
    """Where `source` is None."""


@dataclass(frozen=True)
class Recipe:
    """What one environment is made of."""

    parts: tuple[Part, ...]
    script: str | None
    """The script whose header it is, as a path of the project."""
    frozen: bool
    """There is a lock: nothing is resolved anew."""

    def as_message(self) -> dict[str, Any]:
        """Return it as the host is told of it."""
        rows = [[part.path, part.sha256, part.size] for part in self.parts]
        return {"files": rows, "script": self.script, "frozen": self.frozen}


def read_recipe(root: Path, script: str | None) -> Recipe | None:
    """Return the recipe of a project, or of its script where that has a header; None when there is nothing to go by.

    Raises PackageError for local sources that lie outside the project, are not there, or are too large.
    """
    header = read_header(root / script) if script is not None and is_inside(script) else None
    if script is not None and header is not None:
        return _make_script_recipe(root, script, header)
    if not (root / PROJECT).is_file():
        return None
    frozen = (root / LOCK).is_file()
    files = [PROJECT, *([LOCK] if frozen else []), *(name for name in BESIDE if (root / name).is_file())]
    lock = (root / LOCK).read_text("utf-8") if frozen else None
    found = parse_lock(lock) if lock is not None else parse_sources(_read_toml(root / PROJECT))
    # The project itself is left out: uv needs of it what is named above.
    sources = [path for path in map(posixpath.normpath, found) if path != "."]
    return Recipe(_read_parts(root, files, sources), None, frozen)


def read_header(path: Path) -> str | None:
    """Return the comment block that names a script's dependencies, None where there is none."""
    try:
        with path.open("rb") as file:
            return find_header(file.read(MOST_HEADER).decode("utf-8", "replace"))
    except OSError:
        return None


def find_header(text: str) -> str | None:
    """Return the block of a script's text that begins with `# /// script` and ends with the last `# ///` of its comment."""
    lines = text.splitlines()
    if _BEGIN not in lines:
        return None
    begin = end = lines.index(_BEGIN)
    for number in range(begin + 1, len(lines)):
        line = lines[number]
        if line == _END:
            end = number
        elif line != "#" and not line.startswith("# "):
            break
    return "\n".join([*lines[begin : end + 1], ""]) if end > begin else None


def _make_script_recipe(root: Path, script: str, header: str) -> Recipe:
    """Only the header travels, unless the script lies in one of its sources: what it does is none of its environment's business."""
    lock = f"{script}.lock"
    frozen = (root / lock).is_file()
    folder = posixpath.dirname(script)
    if frozen:
        found = parse_lock((root / lock).read_text("utf-8"))
    else:
        rows = _list_sources(_parse_header(script, header))
        if any(row.get("editable") for row in rows):  # without a lock uv 0.13 does not heed --no-editable
            raise PackageError(
                f"{script}: a source with `editable` is used where it lies, and on the host nothing of it stays",
                hint=f"`uv lock --script {script}`, or leave out `editable`",
            )
        found = [str(row["path"]) for row in rows]
    sources = [posixpath.normpath(posixpath.join(folder, path)) for path in found]
    data = header.encode()
    own = Part(script, hashlib.sha256(data).hexdigest(), len(data), None, data)
    parts = _read_parts(root, [lock] if frozen else [], sources)
    held = any(part.path == script for part in parts)
    return Recipe(parts if held else (own, *parts), script, frozen)


def _parse_header(script: str, header: str) -> dict[str, Any]:
    text = "\n".join(line[2:] for line in header.splitlines()[1:-1])
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PackageError(f"{script}: its header is not TOML: {error}", hint="mend the header") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"{path}: {error}", hint="`uv lock` says more") from None


def parse_lock(text: str) -> list[str]:
    """Return the local sources that a uv.lock names, a project itself among them.

    Read line by line: as TOML a large lock takes 100 ms of every launch.
    """
    return [path for _, path in _LOCAL.findall(text)]


def parse_sources(project: dict[str, Any]) -> list[str]:
    """Return the local sources that a pyproject.toml names for uv."""
    return [str(row["path"]) for row in _list_sources(project)]


def _list_sources(project: dict[str, Any]) -> list[dict[str, Any]]:
    tool = project.get("tool")
    uv = tool.get("uv") if isinstance(tool, dict) else None
    named = uv.get("sources") if isinstance(uv, dict) else None
    items: list[Any] = list(named.values()) if isinstance(named, dict) else []
    rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
    return [row for row in rows if isinstance(row, dict) and "path" in row]


def _read_parts(root: Path, files: Iterable[str], sources: Iterable[str]) -> tuple[Part, ...]:
    parts: dict[str, Part] = {}
    total = 0
    for path in (*files, *(path for source in sources for path in _walk(root, source))):
        if path not in parts:
            parts[path] = _read_part(root, path)
            total += parts[path].size
        if len(parts) > MOST_FILES or total > MOST_BYTES:
            raise PackageError(
                f"the local sources of this project's environment are more than {MOST_FILES} files, or {MOST_BYTES:,} bytes",
                hint="name wheels that you made of them, or smaller folders",
            )
    return tuple(parts.values())


def _walk(root: Path, source: str) -> Iterator[str]:
    """Yield the files of a local source, as paths of the project."""
    name = posixpath.normpath(source)
    if name != "." and not is_inside(name):
        raise PackageError(
            f"the environment of this project needs {source}, a path that leads out of it: what is there does not travel",
            hint="put it into the project's folder and name it from there, or name an environment of the host's in hosts.toml",
        )
    if name == ".":
        yield from _list_own(root)
        return
    place = root / name
    if place.is_file():
        yield name
        return
    if not place.is_dir():
        raise PackageError(f"{place}, a source of this project's environment, is not there", hint="`uv lock`")
    for folder, folders, files in os.walk(place):
        folders[:] = sorted(item for item in folders if item not in _LEFT_OUT and not is_secret_folder(item))
        for file in sorted(files):
            path = place.__class__(folder) / file
            if path.is_file() and not file.endswith(".pyc") and not is_secret_name(file):
                yield path.relative_to(root).as_posix()


def _list_own(root: Path) -> Iterator[str]:
    """Yield the files of the project itself that its rules let travel: what git ignores is nobody's source."""
    spec = read_project(root)
    kept_away = (*spec.exclude, *spec.data, *spec.persist)
    for path in select_files(root, Rules(include=spec.include, exclude=kept_away)).files:
        *folders, name = path.split("/")
        kept = not any(map(is_secret_folder, folders))
        if kept and (root / path).is_file() and not name.endswith(".pyc") and not is_secret_name(name):
            yield path


def _read_part(root: Path, path: str) -> Part:
    try:
        if not (root / path).resolve().is_relative_to(root.resolve()):
            raise PackageError(
                f"{root / path}, which the environment of this project needs, is a link that leads out of it",
                hint="put the file itself there",
            )
        with (root / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Part(path, digest, file.tell(), root / path)
    except OSError as error:
        raise PackageError(f"{root / path}: {error.strerror}", hint="it is part of the environment") from None
