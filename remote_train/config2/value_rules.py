"""Rules for values that hosts.toml and the project file share: each returns the value or raises ValueError."""

from __future__ import annotations

import re

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_text(text: str) -> str:
    """Refuse NUL and every other control character, newline included."""
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text):
        raise ValueError(f"must not have control characters: {text[:40]!r}")
    return text


def check_no_nul(text: str) -> str:
    """Refuse what no environment and no argument list can hold."""
    if "\0" in text:
        raise ValueError("must not have a NUL character")
    return text


def check_env_name(name: str) -> str:
    """Refuse what cannot name an environment variable."""
    if not _ENV_NAME.fullmatch(name):
        raise ValueError("a variable's name has letters, digits and '_', and does not begin with a digit")
    return name


def check_relative(path: str) -> str:
    """Refuse paths and patterns that leave the project: absolute, from home, or upwards."""
    check_text(path)
    if not path.strip():
        raise ValueError("must not be empty")
    if path.startswith(("/", "~")):
        raise ValueError(f"must be relative to the project's folder, not {path!r}")
    if ".." in path.split("/"):
        raise ValueError(f"must stay inside the project, '..' is not allowed: {path!r}")
    return path


def check_relative_folder(path: str) -> str:
    """Refuse anything but one folder below the project's own; the tidy form, without ./ and a final slash."""
    check_relative(path)
    tidy = "/".join(part for part in path.split("/") if part not in {"", "."})
    if not tidy:
        raise ValueError("must be a folder inside the project, not the project itself")
    if any(mark in tidy for mark in "*?["):
        raise ValueError(f"must be a folder, not a pattern: {path!r}")
    return tidy
