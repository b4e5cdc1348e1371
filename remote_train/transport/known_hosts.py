"""known_hosts as OpenSSH reads it (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), and host key fingerprints.

Pure, but for one reader and one writer at the end. A line that cannot be read is skipped and named in a notice; it
never makes the rest of the file unreadable. `ssh-keygen -F` is the oracle of the tests.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MARKERS = {"@revoked": "revoked", "@cert-authority": "cert-authority"}
SSH_PORT = 22
SYSTEM = Path(os.path.realpath("/etc"))
LONGEST_PATTERN = 1024  # match.c: a longer pattern matches nothing
Kind = Literal["match", "changed", "revoked", "unknown", "refused"]
"""What is said of a key; "refused": by ssh, which did not say why."""


@dataclass(frozen=True)
class KnownHostsFile:
    """One file's text; `problem` says why it could not be read."""

    path: str
    text: str
    problem: str = ""


@dataclass(frozen=True)
class Entry:
    """One readable line that speaks of the host asked for."""

    where: str
    marker: str
    key_type: str
    key: bytes


@dataclass(frozen=True)
class Verdict:
    """What the files say about a key; `known` are the entries that led to it."""

    kind: Kind
    known: tuple[Entry, ...] = ()
    authority_only: bool = False

    @property
    def where(self) -> str:
        """The file and line that decided, or ""."""
        return self.known[0].where if self.known else ""


def make_fingerprint(key: bytes) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` prints it: SHA256: and base64 without padding."""
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode()
    return "SHA256:" + digest.rstrip("=")


def match_pin(pin: str, key: bytes) -> bool:
    """Say whether `key` has the fingerprint `pin`; trailing padding and spaces do not count."""
    return hmac.compare_digest(pin.strip().rstrip("=").encode(), make_fingerprint(key).encode())


def make_host_names(addresses: Sequence[str], port: int, alias: str | None) -> tuple[str, ...]:
    """Return the names under which ssh looks a host up: its alias, else every address, as [address]:port off port 22."""
    if alias:
        return (alias.lower(),)
    return tuple(_with_port(address.lower(), port) for address in addresses)


def _with_port(address: str, port: int) -> str:
    return address if port == SSH_PORT else f"[{address}]:{port}"


def match_key(files: Iterable[KnownHostsFile], names: Sequence[str], key_type: str, key: bytes) -> Verdict:
    """Judge the key that a host offers.

    A revoked key stays revoked whatever else is written; else an equal key anywhere is a match. A host of which we
    know other keys only, be it of other types, counts as changed: the types we know were asked for first, so its
    server no longer has them, or is not its server. (ssh would ask here; the question would always look harmless.)
    """
    entries, _ = find_entries(files, names)
    same = tuple(e for e in entries if e.key == key)
    if revoked := tuple(e for e in same if e.marker == "revoked"):
        return Verdict("revoked", revoked)
    if matching := tuple(e for e in same if not e.marker):
        return Verdict("match", matching)
    plain = [e for e in entries if not e.marker]
    if plain:
        return Verdict("changed", tuple(sorted(plain, key=lambda e: e.key_type != key_type)))
    authorities = tuple(e for e in entries if e.marker == "cert-authority")
    return Verdict("unknown", authorities, authority_only=bool(authorities))


def known_key_types(files: Iterable[KnownHostsFile], names: Sequence[str]) -> tuple[str, ...]:
    """Return the key types that the files hold for this host, in their order, for the transport to ask for first."""
    entries, _ = find_entries(files, names)
    return tuple(dict.fromkeys(e.key_type for e in entries if not e.marker))


def find_entries(files: Iterable[KnownHostsFile], names: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Return every line that matches one of `names`, and notices about files and lines that cannot be read."""
    entries: list[Entry] = []
    notices: list[str] = []
    for file in files:
        if file.problem:
            notices.append(f"{file.path}: {file.problem}")
        for number, line in enumerate(file.text.split("\n"), start=1):
            entry = parse_line(line, f"{file.path}:{number}", names)
            if isinstance(entry, str):
                notices.append(entry)
            elif entry:
                entries.append(entry)
    return entries, notices


def parse_line(line: str, where: str, names: Sequence[str]) -> Entry | str | None:
    """Return the entry of a line that matches one of `names`, a notice for a broken line, None for any other."""
    rest = line.strip(" \t\r")
    if not rest or rest.startswith("#"):
        return None
    marker = ""
    if rest.startswith("@"):
        word, rest = _first_word(rest)
        marker = MARKERS.get(word, "")
        if not marker or rest.startswith("@"):
            return f"{where}: unknown marker {word!r}, line skipped"
    hosts, rest = _first_word(rest)
    if not any(match_hosts(hosts, name) for name in names):
        return None
    key_type, rest = _first_word(rest)
    key = parse_key(key_type, _first_word(rest)[0])
    return Entry(where, marker, key_type, key) if key else f"{where}: not a host key, line skipped"


def split_line(line: str) -> tuple[str, str]:
    """Return the first field of a line without a marker, and the rest of it."""
    return _first_word(line.strip(" \t\r"))


def _first_word(text: str) -> tuple[str, str]:
    word, rest = re.match(r"([^ \t]*)[ \t]*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return word, rest


def parse_key(key_type: str, encoded: str) -> bytes:
    """Return the key's bytes, b"" when they are not base64, not whole, or do not begin with the type that the line names."""
    try:
        key = base64.b64decode(encoded.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""
    name = key_type.encode(errors="replace")
    begins = key.startswith(struct.pack(">I", len(name)) + name) and name
    certificate = name.endswith(
        b"-cert-v01@openssh.com"
    )  # holds numbers without a length (PROTOCOL.certkeys)
    return key if begins and (certificate or _is_whole(key)) else b""


def _is_whole(key: bytes) -> bool:
    """A key is strings and numbers, each behind its length: one that was cut is none (ssh does not take it either)."""
    at = 0
    while at + 4 <= len(key):
        at += 4 + int.from_bytes(key[at : at + 4], "big")
    return at == len(key)


def match_hosts(field: str, name: str) -> bool:
    """Say whether the first field of a line (hashed, or patterns with commas) stands for `name` (lower case)."""
    if field.startswith("|"):
        return match_hashed(field, name)
    matched = False
    for pattern in field.lower().split(","):
        if match_pattern(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched


def match_hashed(field: str, name: str) -> bool:
    """Say whether `|1|salt|hash` was made from `name`: HMAC-SHA1 of the name, keyed by the salt."""
    parts = field.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(errors="surrogateescape"), "sha1"), digest)


def match_pattern(pattern: str, name: str) -> bool:
    """Match a whole name against a pattern in which * is any text and ? any one character."""
    if len(pattern) >= LONGEST_PATTERN:
        return False
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def read_known_hosts(paths: Iterable[Path]) -> tuple[KnownHostsFile, ...]:
    """Read the files that exist; one that cannot be read comes back empty with its problem."""
    return tuple(file for path in paths if (file := _read_one(path.expanduser())) is not None)


def _read_one(path: Path) -> KnownHostsFile | None:
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return KnownHostsFile(str(path), "", f"not read: {error.strerror}")
    return KnownHostsFile(str(path), text)


def keeps_lines(path: Path) -> bool:
    """Tell a place where lines can be kept, there already or not, from /dev/null and the like."""
    try:
        return path.is_file() or not path.exists()
    except OSError:  # in a folder that is closed to us
        return False


def find_keeper(paths: Iterable[Path]) -> Path | None:
    """Find the first of the user's files where lines can be kept."""
    users = (path for path in paths if not Path(os.path.realpath(path)).is_relative_to(SYSTEM))
    return next(filter(keeps_lines, users), None)


def hash_name(name: str, salt: bytes) -> str:
    """Return the first field of a line that does not show whom it speaks of (HashKnownHosts); the salt has 20 bytes."""
    digest = hmac.digest(salt, name.encode(), "sha1")
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


def write_known_host(path: Path, name: str, key_type: str, key: bytes, *, hashed: bool = False) -> None:
    """Append one line for a host whose key the user has accepted; make the file (0600) where there is none."""
    if not re.fullmatch(r"[A-Za-z0-9._:%\[\]-]+", name):
        raise ValueError(f"{name!r} cannot stand in known_hosts")
    path = path.expanduser()
    if not keeps_lines(path):
        raise ValueError(f"{path} is no file")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    field = hash_name(name, os.urandom(20)) if hashed else name
    line = f"{field} {key_type} {base64.b64encode(key).decode()}\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        unfinished = size and os.pread(descriptor, 1, size - 1) != b"\n"
        file.write((b"\n" if unfinished else b"") + line.encode())
