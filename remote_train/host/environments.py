"""Environments that uv builds on this host for projects: found, built once for each content, and told of while they grow.

`envs/HASH` is named by what it is made of, with uv's version and this platform; it is there whole or not at all. A process of
its own builds it (env_builder.py), which ends with this connection.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

from remote_train.host import disk, layout, store
from remote_train.host.commands import finish_commands, start_command, start_script
from remote_train.host.recipe_format import check_recipe, make_key
from remote_train.host.start import Refusal

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from remote_train.host.operations import Operations

START_SECONDS = 20.0
LOOK_SECONDS = 1.0
MOST_LINES = 100
LEAST_FREE = 500_000_000
"""torch 2.9 for the CPU alone is 700 MB once it is unpacked; uv may link some of that from its cache."""
MISSING = "uv is not installed there, or not in PATH, ~/.local/bin or ~/.cargo/bin"
_PLACES = ("~/.local/bin/uv", "~/.cargo/bin/uv", "/usr/local/bin/uv", "/opt/homebrew/bin/uv")
_VERSION = re.compile(r"uv (\d+\.\d+\.[0-9A-Za-z.+-]{1,40})")
_building: Dict[str, Builder] = {}
"""By key; an agent has one connection."""


def environment(operations: Operations, request: Dict[str, Any]) -> None:
    """Answer with the Python of a recipe's environment, what is lacking to build it, or how far that is.

    A laptop asks again, with the same request, until there is a `python`.
    """
    recipe = check_recipe(request["recipe"])
    shipped = request.get("uv")
    if shipped is not None:
        shipped = {key: str(shipped[key]) for key in ("sha256", "system", "machine")}
        if not layout.is_hash(shipped["sha256"]):
            raise ValueError("not a program: %r" % (shipped,))
    env = {str(key): str(value) for key, value in request.get("env", {}).items()}
    operations.aside(request["id"], lambda: _answer(operations.root, recipe, shipped, env))


def _answer(
    root: str, recipe: Dict[str, Any], shipped: Optional[Dict[str, str]], env: Dict[str, str]
) -> Dict[str, Any]:
    whole = make_key(recipe, env)
    if whole in _building:
        return _building[whole].look(LOOK_SECONDS)
    uv = _find_shipped(root, shipped) if shipped is not None else find_uv()
    if uv is None:
        return {"need": "uv"}
    name = os.uname()
    version = read_version(uv)
    key = make_key(recipe, env, version, name.sysname, name.machine, "-".join(_libc()))
    python = find_ready(root, key)
    if python is not None:
        return {"python": python, "built": False}
    if not all(store.has_blob(root, row[1], row[2]) for row in recipe["files"]):
        return {"need": "files"}
    _check_room(root, _find_cache(uv, env))
    job = dict(recipe, root=root, key=key, uv=uv, env=env)
    _building[whole] = Builder(whole, job)
    return {"building": True, "lines": ["uv %s builds the environment %s" % (version, key[:12])]}


def _check_room(root: str, cache: str) -> None:
    """Raise Refusal where no environment with torch has room, before anything is downloaded for it.

    A `cache` of uv's that is there already may hold all of it.
    """
    for place in (root,) if os.path.exists(cache) else (root, cache):
        free = disk.free_near(place)
        if free is not None and free < LEAST_FREE:
            words = "{:,} bytes are free in {}, and an environment with torch needs {:,} at least"
            raise Refusal("host-space", words.format(free, place, LEAST_FREE))


def _find_cache(uv: str, env: Dict[str, str]) -> str:
    """Return where a uv keeps what it has downloaded; the root folder where it does not say."""
    (outcome,) = finish_commands(
        [start_command([uv, "cache", "dir"], dict(os.environ, **env))], START_SECONDS
    )
    return "/" if outcome.problem else os.path.abspath(outcome.output.strip())


def _libc() -> Tuple[str, ...]:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "",)
    except (AttributeError, ValueError, OSError):
        return ("",)


def find_uv() -> str:
    """Return uv's path on this host; raise Refusal where there is none."""
    for path in (shutil.which("uv"), *map(os.path.expanduser, _PLACES)):
        if path and os.access(path, os.X_OK):
            return os.path.abspath(path)
    raise Refusal("host-unfit", MISSING)


def read_version(uv: str) -> str:
    """Return the version that a uv says it has; raise Refusal where it does not run."""
    (outcome,) = finish_commands([start_command([uv, "--version"])], START_SECONDS)
    match = _VERSION.match(outcome.output)
    if match is None:
        raise Refusal("host-unfit", "%s does not run there: %s" % (uv, outcome.problem or "not uv"))
    return match.group(1)


def _find_shipped(root: str, shipped: Dict[str, str]) -> Optional[str]:
    """Return where the laptop's own uv lies here, placed from its blob once; None when that has to be sent."""
    name = os.uname()
    have, want = (name.sysname, name.machine), (shipped["system"], shipped["machine"])
    if have != want:
        words = "the uv of this laptop is for %s %s, and it is %s %s there" % (*want, *have)
        raise Refusal("host-unfit", words)
    place = layout.uv_path(root, shipped["sha256"])
    if os.access(place, os.X_OK):
        os.utime(os.path.dirname(place))
        return place
    blob = layout.blob_path(root, shipped["sha256"])
    if not os.path.exists(blob):
        return None
    os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
    part = "%s.%d.tmp" % (place, os.getpid())
    try:
        if _copy(blob, part) != shipped["sha256"]:
            raise Refusal("host-unfit", "the uv that was sent there is damaged: remove %s" % blob)
        os.chmod(part, 0o700)
        os.rename(part, place)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return place


def _copy(source: str, target: str) -> str:
    """Copy a file and return the hash of what was written."""
    digest = hashlib.sha256()
    with open(source, "rb") as reading, open(target, "wb") as writing:
        for piece in iter(lambda: reading.read(1 << 20), b""):
            digest.update(piece)
            writing.write(piece)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def find_ready(root: str, key: str) -> Optional[str]:
    """Return the Python of an environment that is there and runs, None where it is not there or will never run again.

    Raises Refusal where it does not answer now: it may be whole, and in use.
    """
    folder = layout.env_path(root, key)
    if not os.path.exists(folder):
        return None
    python = os.path.join(folder, layout.VENV, "bin", "python")
    (outcome,) = finish_commands([start_command([python, "-I", "-c", ""])], START_SECONDS)
    if outcome.passing:
        words = "the Python of this project's environment does not answer there now (%s): it lies in %s"
        raise Refusal("host-unfit", words % (outcome.problem, folder))
    if outcome.problem is not None:  # the Python below it was taken away
        return None
    os.utime(folder)
    return python


class Builder:
    """A process that builds one environment, as long as this one lives."""

    def __init__(self, name: str, job: Dict[str, Any]) -> None:
        self.name = name
        self.last = ""
        self.process = start_script("env_builder", job, sys.executable, errors=subprocess.STDOUT)
        self.rest = b""

    def look(self, seconds: float) -> Dict[str, Any]:
        """Return what it has said within some seconds, or how it ended; raise Refusal where it failed."""
        lines, end = self._read(seconds)
        if end is None:
            return {"building": True, "lines": lines}
        del _building[self.name]
        self.process.stdin.close()  # type: ignore[union-attr]  # it has pipes
        self.process.stdout.close()  # type: ignore[union-attr]  # as above
        self.process.wait()
        if "error" in end:
            full = "No space left" in end["error"] or "quota exceeded" in end["error"].lower()
            raise Refusal("host-space" if full else "host-unfit", str(end["error"]))
        return dict(end, lines=lines)

    def _read(self, seconds: float) -> Tuple[List[str], Optional[Dict[str, Any]]]:
        import select  # noqa: PLC0415  (only where something is built)

        fd = self.process.stdout.fileno()  # type: ignore[union-attr]  # as above
        lines: List[str] = []
        while len(lines) < MOST_LINES and select.select([fd], [], [], 0.0 if lines else seconds)[0]:
            piece = os.read(fd, 8192)
            if not piece:
                return lines, {"error": "the environment's builder was ended: %s" % (self.last or "no word")}
            *whole, self.rest = (self.rest + piece).split(b"\n")
            for line in whole:
                said = self._parse(line)
                if "line" not in said:
                    return lines, said
                lines.append(str(said["line"]))
        return lines, None

    def _parse(self, line: bytes) -> Dict[str, Any]:
        try:
            said: Dict[str, Any] = json.loads(line)
        except ValueError:  # a traceback of ours
            self.last = line.decode("utf-8", "replace")[:500]
            return {"line": self.last}
        return said
