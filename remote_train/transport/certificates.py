"""User certificates of OpenSSH (PROTOCOL.certkeys): which key one is for. Pure, but for one reader."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = "-cert-v01@openssh.com"
# How many fields of the plain public key follow the nonce.
FIELDS = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
}


def read_certificate(path: Path) -> bytes:
    """Read a certificate's file, `TYPE BASE64 COMMENT`; b"" where there is none. It is judged by the host, not here."""
    try:
        words = path.read_bytes().split()
        return base64.b64decode(words[1], validate=True)
    except (OSError, IndexError, binascii.Error):
        return b""


def parse_certified_key(certificate: bytes) -> bytes:
    """Return the plain public key that a certificate is for; b"" for anything else."""
    try:
        kind, rest = _take(certificate)
        name = kind.decode("ascii", "replace").removesuffix(SUFFIX)
        if name not in FIELDS or name == kind.decode("ascii", "replace"):
            return b""
        _, rest = _take(rest)
        parts = [name.encode()]
        for _ in range(FIELDS[name]):
            part, rest = _take(rest)
            parts.append(part)
    except struct.error:
        return b""
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def _take(data: bytes) -> tuple[bytes, bytes]:
    """Return one length-prefixed field and the rest; struct.error where it is cut off."""
    (size,) = struct.unpack_from(">I", data)
    if len(data) < 4 + size:
        raise struct.error("cut off")
    return data[4 : 4 + size], data[4 + size :]
