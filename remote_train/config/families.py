"""Recognise scripts whose command line we know, from their text alone: nothing of the project is executed.

One family so far: scripts that take their settings from nanoGPT's configurator.py, which reads config files and
--key=value in order. `read_family` looks at files; the rest is pure.
"""

from __future__ import annotations

import ast
import glob
import re
import stat
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_MAX_BYTES = 1_000_000
_CONFIGURATOR = re.compile(r"^[ \t]*exec\([ \t]*open\([^#\n]*configurator\.py", re.MULTILINE)
_ASSIGNMENT = re.compile(r"^([A-Za-z_]\w*)[ \t]*=[ \t]*([^\n#]*)", re.MULTILINE)
_DEVICE_ARGUMENTS = {"device": "--device=cpu", "compile": "--compile=False"}


@dataclass(frozen=True)
class Family:
    """What the family's scripts need to be told and leave behind; paths are relative to the run's folder."""

    name: str
    device_args: dict[str, tuple[str, ...]] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ()
    resume_args: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    """Files that git ignores as a rule and the run needs."""


def read_family(folder: Path, script: str, args: Sequence[str]) -> Family | None:
    """Read the script, and the config files that ARGS name, below the run's folder; None: no known family."""
    text = _read_text(folder, script)
    if text is None or not _CONFIGURATOR.search(text):
        return None
    names = [argument for argument in args if _is_config_file(argument)]
    return parse_nanogpt(text, args, {name: _read_text(folder, name) or "" for name in names})


def parse_nanogpt(script: str, args: Sequence[str], configs: Mapping[str, str]) -> Family:
    """Parse the settings as configurator.py would: the script's own, then config files and --key=value in order."""
    found = _CONFIGURATOR.search(script)  # the line itself: a docstring may name the file long before
    own = _parse_assignments(script[: found.start()] if found else script)
    settings = dict(own)
    for argument in args:
        if _is_config_file(argument):
            settings.update(_parse_assignments(configs.get(argument, "")))
        elif "=" in argument:
            key, _, value = argument.removeprefix("--").partition("=")
            settings[key] = _parse_value(value) or value
    return Family(
        name="nanogpt",
        # The configurator refuses keys that the script does not have.
        device_args={"cpu": tuple(text for key, text in _DEVICE_ARGUMENTS.items() if key in own), "cuda": ()},
        checkpoints=_make_checkpoints(settings.get("out_dir")),
        resume_args=("--init_from=resume",) if "init_from" in own else (),
        include=_make_include(settings.get("dataset")),
    )


def merge_device_args(args: Sequence[str], device_args: Sequence[str]) -> tuple[str, ...]:
    """Put device arguments last, except options that ARGS already name, whatever their value or spelling."""
    named = {argument.partition("=")[0] for argument in args if argument.startswith("-")}
    kept: list[str] = []
    keep = True
    for argument in device_args:
        if argument.startswith("-") and not re.fullmatch(r"-\d.*", argument):  # -1 is a value
            keep = argument.partition("=")[0] not in named
        if keep:
            kept.append(argument)
    return (*args, *kept)


def _is_config_file(argument: str) -> bool:
    return "=" not in argument and not argument.startswith("-")


def _parse_assignments(text: str) -> dict[str, str]:
    """Parse the assignments at the left edge; a value that is no text in quotes counts as unknown, ""."""
    return {name: _parse_value(written.strip()) or "" for name, written in _ASSIGNMENT.findall(text)}


def _parse_value(written: str) -> str | None:
    try:
        value = ast.literal_eval(written) if len(written) < 1000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _make_checkpoints(out_dir: str | None) -> tuple[str, ...]:
    if not out_dir or not _is_inside(out_dir):
        return ("out*/ckpt.pt",)
    return (f"{glob.escape(str(PurePosixPath(out_dir)))}/ckpt.pt",)


def _make_include(dataset: str | None) -> tuple[str, ...]:
    if not dataset or not _is_inside(dataset):
        return ()
    folder = f"data/{glob.escape(str(PurePosixPath(dataset)))}"
    return (f"{folder}/*.bin", f"{folder}/meta.pkl")


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return path.isprintable() and not pure.is_absolute() and ".." not in pure.parts and pure.parts != ()


def _read_text(folder: Path, name: str) -> str | None:
    """Read a text the run names; None when it is missing, no file, or too large to be a script."""
    try:
        path = (folder / name).resolve(strict=True)
        status = path.stat()
        usable = stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_BYTES
        return path.read_text("utf-8", "replace") if usable else None
    except (OSError, ValueError):  # the run itself reports a missing script
        return None
