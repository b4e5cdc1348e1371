"""A host's environment that uv builds for a project: asked for, sent what it lacks, waited for with uv's own words told."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.errors import HostUnfit, ProtocolError
from remote_train.fitness import hint_environment
from remote_train.host.recipe_format import make_key
from remote_train.package.manifest import render_size
from remote_train.recipes import read_recipe
from remote_train.upload import Content, send_contents

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal

    from remote_train.recipes import Recipe
    from remote_train.session import Session

MOST_TOLD = 2000
"""Lines of uv's that are passed on."""
MUCH = 10_000_000
"""Bytes whose sending is worth a line."""
MOST_ASKED = 3
"""How often a host may lack the same."""
NO_RECIPE = "no pyproject.toml, no uv.lock, and no header in the script that names its dependencies"


class Environment:
    """The environment of one project, or of one of its scripts, on a host with `uv` in hosts.toml."""

    def __init__(
        self, root: Path, uv: bool | Literal["ship"], script: str | None, env: Mapping[str, str]
    ) -> None:
        self.root = root
        self.script = script
        self._uv = uv
        self._env = dict(env)

    @cached_property
    def recipe(self) -> Recipe | None:
        """What it is made of; None where the project says nothing."""
        return read_recipe(self.root, self.script)

    @property
    def names(self) -> list[str]:
        """Return what its Python is remembered by."""
        return [f"uv:{make_key(self.recipe.as_message(), self._env)}"] if self.recipe is not None else []

    def build(self, session: Session, say: Callable[[str], None]) -> str:
        """Return the path of its Python, built where it is not there yet; `say` gets uv's own lines.

        Raises HostUnfit with what uv says, and ConnectionLost: what was being built then is gone.
        """
        try:
            return self._build(session, say)
        except HostUnfit as error:
            error.hint = error.hint or hint_environment(error.message)
            raise

    def _build(self, session: Session, say: Callable[[str], None]) -> str:
        recipe = self.recipe
        if recipe is None:
            raise HostUnfit(f"{session.host}: uv is to build the environment, and there is {NO_RECIPE}")
        program = _read_program() if self._uv == "ship" else None
        message: dict[str, Any] = {"recipe": recipe.as_message(), "env": self._env}
        if program is not None:
            name = os.uname()
            message["uv"] = {"sha256": program.sha256, "system": name.sysname, "machine": name.machine}
        needed: list[str] = []
        told = 0
        while True:
            answer = session.request("environment", **message)
            lines = answer.get("lines", [])[: MOST_TOLD - told]
            told += len(lines)
            for line in lines:
                say(f"{session.host}: {line}")
            if "python" in answer:
                return str(answer["python"])
            if answer.get("building"):
                continue
            needed.append(str(answer.get("need")))
            strange = needed[-1] not in ("files", "uv") or (needed[-1] == "uv" and program is None)
            if strange or needed.count(needed[-1]) > MOST_ASKED:
                raise ProtocolError(
                    f"{session.host} does not say what its environment lacks, or says it for ever"
                )
            if program is not None and needed[-1] == "uv":
                send_contents(session, [program], _make_progress(session, say), say)
            else:
                _send_parts(session, recipe, say)


def _read_program() -> Content:
    """Return this laptop's own uv; raise HostUnfit where it has none."""
    found = shutil.which("uv")
    if found is None:
        raise HostUnfit('`uv = "ship"` in hosts.toml brings this laptop\'s own uv, and there is none in PATH')
    path = Path(found).resolve()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Content(digest, file.tell(), path, "uv")


def _send_parts(session: Session, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Bring what a recipe is made of; a header, which is no file of the project's, is put into one for that."""
    with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
        contents = []
        for part in recipe.parts:
            source = part.source or Path(folder) / part.sha256
            if part.source is None:
                source.write_bytes(part.text)
            contents.append(Content(part.sha256, part.size, source, part.path))
        send_contents(session, contents, _make_progress(session, say), say)


def _make_progress(session: Session, say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return what says, once, that much is to travel."""
    told: list[int] = []

    def tell(_done: int, total: int) -> None:
        if total >= MUCH and not told:
            told.append(total)
            say(f"{session.host}: {render_size(total)} of what its environment is made of are sent")

    return tell
