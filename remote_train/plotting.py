"""`plot RUN…`: the records of runs here as lines, and a picture that is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from remote_train.errors import LocalSpace, UsageError
from remote_train.metrics.series import Collected
from remote_train.watch import read_curve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from remote_train.metrics.series import Line
    from remote_train.records import Run

KINDS = ("png", "svg")
UNWRITABLE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
)
"""The name that was asked for cannot be written, whatever space there is."""


def parse_kind(path: Path) -> str:
    """Return what kind of picture a file's name asks for; raise UsageError for one that cannot be made."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise UsageError(
            f"{path}: a picture's name ends in .png or .svg", hint=f"for instance -o {path.stem}.png"
        )
    return kind


def read_lines(runs: Sequence[Run], whats: Sequence[str], axes: Sequence[str]) -> list[Line]:
    """Return every line that can be drawn; raise UsageError when there is none. What was superseded is left out."""
    lines = []
    for run in runs:
        collected = Collected(run.id, read_curve(run), whats)
        made = [collected.make_line(what, axis) for what in whats for axis in axes]
        lines += [line for line in made if line is not None]
    if not lines:
        names = ", ".join(run.id for run in runs)
        hint = f"`remote-train metrics {runs[0].id}` lists what there is"
        raise UsageError(
            f"nothing of {', '.join(whats)} is known of {names}, so there is nothing to draw", hint=hint
        )
    return lines


def write_picture(path: Path, data: bytes) -> None:
    """Replace a file: a reader sees the old picture or the new one. Raises LocalSpace, and UsageError for a name that cannot be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        words, hint = f"{path}: {error.strerror or error}", "choose another -o FILE"
        if error.errno in UNWRITABLE:
            raise UsageError(words, hint=hint) from error
        raise LocalSpace(words, hint=hint, path=str(path)) from error
