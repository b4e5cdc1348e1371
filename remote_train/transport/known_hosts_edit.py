"""Changes to known_hosts that a person has asked for: a host's old keys leave, its new one is added.

What may not be changed is named instead: lines with wildcards speak of other hosts too, @revoked and @cert-authority
lines are somebody's decision, and the system's files are not the user's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.errors import ConfigError, LocalSpace
from remote_train.flocks import locked
from remote_train.host.durable import write_whole
from remote_train.transport.known_hosts import (
    SYSTEM,
    Entry,
    find_entries,
    keeps_lines,
    match_hosts,
    parse_line,
    read_known_hosts,
    split_line,
    write_known_host,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Dropped:
    """A text without a host's keys, and the lines, from 1, that speak of it and had to stay."""

    text: str
    stayed: tuple[int, ...] = ()


def drop_names(text: str, names: Sequence[str], keep: bytes = b"") -> Dropped:
    """Take `names` out of a known_hosts text, with the lines that have no other name; lines with the key `keep` stay.

    Of a line for several hosts the others stay. Lines with a marker are not touched.
    """
    lines, stayed = text.split("\n"), []
    kept: list[str] = []
    for number, line in enumerate(lines, start=1):
        entry = parse_line(line, "", names)
        if not isinstance(entry, Entry) or entry.marker or entry.key == keep:
            kept.append(line)
            continue
        hosts, rest = split_line(line)
        left = (
            [] if hosts.startswith("|") else [each for each in hosts.split(",") if each.lower() not in names]
        )
        if any(match_hosts(",".join(left), name) for name in names):
            stayed.append(number)
            kept.append(line)
        elif any(not each.startswith("!") for each in left):
            kept.append(f"{','.join(left)} {rest}")
    return Dropped("\n".join(kept), tuple(stayed))


def find_fixed(paths: Sequence[Path], names: Sequence[str], keep: bytes) -> list[str]:
    """Return the FILE:LINE of entries of other keys that `replace_known_host` would not take out."""
    fixed = []
    for file in read_known_hosts(paths):
        if Path(os.path.realpath(file.path)).is_relative_to(SYSTEM):
            entries = find_entries([file], names)[0]
            fixed += [e.where for e in entries if not e.marker and e.key != keep]
        else:
            fixed += [f"{file.path}:{number}" for number in drop_names(file.text, names, keep).stayed]
    return fixed


def replace_known_host(
    paths: Sequence[Path], names: Sequence[str], key_type: str, key: bytes, *, hashed: bool = False
) -> list[Path]:
    """Take a host's other keys out of the user's files and add this one to the first; return the files changed.

    Each file is replaced whole, its old text kept beside it as FILE.old, as `ssh-keygen -R` does. Raises ConfigError
    for lines that have to be changed by hand, or no file to write to, before anything is written, and LocalSpace.
    """
    if not paths or not keeps_lines(paths[0].expanduser()):
        raise ConfigError(
            [
                f"ssh_config: the UserKnownHostsFile of {names[0]} is {paths[0] if paths else 'none'}: no key can be remembered"
            ],
            hint='host_key = "SHA256:…" in hosts.toml pins it instead; `hosts add` writes that for --host-key',
        )
    if fixed := find_fixed(paths, names, key):
        raise ConfigError(
            [f"{where}: knows another key for {names[0]}, and is not ours to change" for where in fixed],
            hint="change these lines by hand, then type it again",
        )
    try:
        changed = [path for path in paths if _rewrite(path.expanduser(), names, key)]
        known = [e for e in find_entries(read_known_hosts(paths), names)[0] if e.key == key and not e.marker]
        if not known:
            write_known_host(paths[0], names[0], key_type, key, hashed=hashed)
            changed = list(dict.fromkeys([paths[0], *changed]))
    except (OSError, ValueError) as error:
        raise LocalSpace(f"{paths[0]}: the key could not be written: {error}") from error
    return changed


def _rewrite(path: Path, names: Sequence[str], keep: bytes) -> bool:
    """Write one file anew; tell whether it had to be."""
    place = Path(os.path.realpath(path))
    if not place.is_file() or place.is_relative_to(SYSTEM):
        return False
    with locked(place.parent):
        raw = place.read_bytes()
        text = raw.decode(errors="surrogateescape")
        left = drop_names(text, names, keep).text
        if left == text:
            return False
        write_whole(f"{place}.old", raw)
        write_whole(str(place), left.encode(errors="surrogateescape"))
    return True
