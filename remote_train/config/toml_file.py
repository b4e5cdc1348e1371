"""Read one TOML file of the user's: whatever it is, the answer is its data with lines, or a ConfigError.

Only reading and its refusals live here; what the keys mean is the schemas' matter.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote_train.config.toml_lines import KeyPath, choose_line, parse_key_lines
from remote_train.errors import ConfigError
from remote_train.host.disk import find_open_folder

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1_000_000
_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


@dataclass(frozen=True)
class TomlFile:
    """A parsed file: its data, and the line of each key path."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int]

    def line_of(self, key: KeyPath) -> int:
        """Tell the line of a key, or of the nearest table around it."""
        return choose_line(self.lines, key)

    def render_problem(self, key: KeyPath, message: str) -> str:
        """Render one line of a ConfigError: FILE:LINE: key: message."""
        return f"{self.path}:{self.line_of(key)}: {render_key(key)}: {message}"


def render_key(key: KeyPath) -> str:
    """Render a key path as one would write it in the file; unprintable characters are escaped."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_render_part(part)}" for part in key)
    return text.removeprefix(".")


def _render_part(part: str) -> str:
    return part if _BARE_KEY.fullmatch(part) else '"' + repr(part)[1:-1] + '"'


def read_toml(path: Path, *, private: bool = False) -> TomlFile:
    """Read and parse a TOML file without ever blocking on what stands in its place.

    A private file must belong to this user or to root and be writable by its owner only. Raises ConfigError.
    """
    return parse_toml(path, _decode(path, _read_bytes(path, private=private)))


def parse_toml(path: Path, text: str) -> TomlFile:
    """Parse the text of a file, or one that is to become it. Raises ConfigError."""
    try:
        data = tomllib.loads(text)
        return TomlFile(path, data, parse_key_lines(text))
    except RecursionError:
        raise ConfigError([f"{path}: nested too deeply"]) from None
    except ValueError as error:  # TOMLDecodeError, and integers beyond Python's limit of digits
        raise ConfigError([_render_syntax_error(path, text, str(error))]) from None


def read_private_text(path: Path) -> tuple[str, str]:
    r"""Read a file of this user's without parsing it, and how its lines end; in the text each ends in `\n`.

    Where not all end in CRLF, that is `\n`. The checks are those of a private `read_toml`.
    """
    raw = _read_bytes(path, private=True)
    return _decode(path, raw), "\r\n" if raw.count(b"\r\n") == raw.count(b"\n") > 0 else "\n"


def _read_bytes(path: Path, *, private: bool) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0, closefd=True) as file:
            if private:
                _check_folders(path)
            _check_kind(path, os.fstat(descriptor), private=private)
            raw = file.read(MAX_BYTES + 1) or b""
    except IsADirectoryError:
        raise ConfigError([f"{path}: is a folder, not a file"]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError([f"{path}: is larger than {MAX_BYTES:,} bytes"])
    return raw


def _check_folders(path: Path) -> None:
    """Refuse a file that another user could put another in the place of: this user's own, from a stranger's project."""
    for place in (path.absolute(), path.resolve()):
        folder = find_open_folder(str(place))
        if folder is not None:
            raise ConfigError(
                [f"{path}: everybody may write into {folder}, and put another file there"],
                hint=f"chmod o-w '{folder}'",
            )


def _check_kind(path: Path, status: os.stat_result, *, private: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise ConfigError([f"{path}: is {kind}, not a file"])
    if private and status.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(
            [f"{path}: belongs to another user (uid {status.st_uid})"],
            hint="whoever can write this file decides where your code runs; make a copy of your own",
        )
    if private and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            [f"{path}: can be written by other users (mode {stat.S_IMODE(status.st_mode):04o})"],
            hint=f"chmod go-w '{path}'",
        )


def _decode(path: Path, raw: bytes) -> str:
    try:
        # A byte order mark is what some editors write; TOML reads the rest as if it were not there.
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8 (byte 0x{raw[error.start]:02x})"]) from None


def _render_syntax_error(path: Path, text: str, message: str) -> str:
    position = _POSITION.search(message)
    if position is None:
        return f"{path}:{text.count(chr(10)) + 1}: {message}"
    return f"{path}:{position[1]}:{position[2]}: {message[: position.start()]}"
