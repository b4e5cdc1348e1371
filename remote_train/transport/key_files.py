"""Our key files, without any SSH library: which there are, their public halves, and whether they have a passphrase."""

from __future__ import annotations

import base64
import binascii
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.transport import known_hosts

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
OPENSSH_MAGIC = b"openssh-key-v1\0"  # PROTOCOL.key of OpenSSH
UNLOCKED = b"\0\0\0\4none"  # the cipher, behind it
LOCKED_MARKS = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"\nProc-Type: 4,ENCRYPTED")


def choose_key_files(identity_files: Sequence[Path]) -> list[Path]:
    """Return the private keys to offer, in order: the configured ones, else the default ones."""
    return [Path(path).expanduser() for path in identity_files or [Path(name) for name in DEFAULT_KEYS]]


def show_path(path: Path) -> str:
    """Return a path with the home folder as ~."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def read_public_key(path: Path) -> bytes:
    """Return the public half of a private key, also of an encrypted one, from PATH.pub or the file itself; or b""."""
    for place in (path.with_name(path.name + ".pub"), path):
        try:
            text = place.read_bytes()
        except OSError:
            continue
        if key := parse_public_line(text) or parse_openssh_public(text):
            return key
    return b""


def parse_public_line(line: bytes) -> bytes:
    """Return the key bytes of a `TYPE BASE64 COMMENT` line; b"" when it is none."""
    words = line.decode("ascii", "replace").split()
    return known_hosts.parse_key(words[0], words[1]) if len(words) > 1 else b""


def parse_openssh_public(text: bytes) -> bytes:
    """Return the public key that an OpenSSH private key file holds in clear; b"" for any other file."""
    data, position = _decode(text), len(OPENSSH_MAGIC)
    try:
        for _ in ("cipher", "kdf", "kdf options"):
            position += 4 + struct.unpack_from(">I", data, position)[0]
        count, length = struct.unpack_from(">II", data, position)
    except struct.error:
        return b""
    return (
        data[position + 8 : position + 8 + length] if data.startswith(OPENSSH_MAGIC) and count == 1 else b""
    )


def read_locked(path: Path) -> bool:
    """Say whether a private key is there and has a passphrase."""
    try:
        return is_locked(path.read_bytes())
    except OSError:
        return False


def is_locked(text: bytes) -> bool:
    """Say whether the text of a private key takes a passphrase to be read, in OpenSSH's format, PKCS #8 or PEM."""
    data = _decode(text)
    if data.startswith(OPENSSH_MAGIC):
        return not data.startswith(UNLOCKED, len(OPENSSH_MAGIC))
    return any(mark in text for mark in LOCKED_MARKS)


def _decode(text: bytes) -> bytes:
    lines = [line for line in text.splitlines() if line and not line.startswith(b"-----")]
    try:
        return base64.b64decode(b"".join(lines), validate=True)
    except binascii.Error:
        return b""
