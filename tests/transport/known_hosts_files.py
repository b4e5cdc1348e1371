"""Known_hosts files made at random: every kind of line that people and tools write, and some that nobody should."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

HOSTS = (
    "box",
    "gpu-1",
    "gpu-2",
    "a.example",
    "b.example",
    "10.0.0.1",
    "10.0.0.2",
    "fe80::1%eth0",
    "2001:db8::1",
)
PORTS = (
    "[box]:2222",
    "[a.example]:2222",
    "[10.0.0.1]:22022",
    "[2001:db8::1]:2222",
    "[gpu-1]:2222",
    "[box]:22",
)
PATTERNS = (
    "*", "?", "b?x", "b*", "*x", "*.example", "?.example", "gpu-?", "gpu-*", "10.0.0.*", "10.*", "[*]:2222", "[box]:*", "[box]:22?2",
    "**", "*o*", "box*", "[b-x]ox", "2001:*", "fe80::*", "",
)  # fmt: skip
QUERIES = (*HOSTS, *PORTS, "bay", "c.example", "[other]:2222", "gpu-12", "10.0.0.11")
MARKERS = (
    "@revoked ",
    "@cert-authority ",
    "@revoked  ",
    "@cert-authority \t",
    "@other ",
    "@revoked @cert-authority ",
    "@ ",
    "@Revoked ",
)
ODD = (
    "", "   ", "\t", "# box", " # box ssh-ed25519", "#box ssh-ed25519 AAAA", "box", "box ssh-ed25519", "box ssh-ed25519 ",
    "box ssh-ed25519 AAAA", "box ssh-ed25519 !!!!", "box ssh-nothing AAAAC3NzaC1lZDI1NTE5", "@revoked", "@revoked box", "box 1024 35 12345",
    "* junk", "|1|", "|1||", "|2|a|b", "|1|YQ==|YQ==", ",", "!", "box,ssh-ed25519",
)  # fmt: skip
# Not made: a marker with a tab right behind it. OpenSSH 9.2 skips such a line; we heed @revoked there too.
GAPS = (" ", " ", " ", "  ", "\t", " \t ")


def hash_name(name: str, salt: bytes) -> str:
    """Hash a name as `ssh-keygen -H` does."""
    digest = hmac.digest(salt, name.encode(), hashlib.sha1)
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def make_field(chance: Random) -> str:
    """Make the first field: hashed, or names and patterns, some negated, some in capitals."""
    if chance.random() < 0.3:
        hashed = hash_name(chance.choice(HOSTS + PORTS), chance.randbytes(20))
        broken = (
            hashed[:-3],
            hashed.replace("|1|", "|2|"),
            f"{hashed},box",
            f"box,{hashed}",
            f"!{hashed}",
            hashed + "|",
        )
        return hashed if chance.random() < 0.9 else chance.choice(broken)
    words = [
        chance.choice(HOSTS + PORTS if chance.random() < 0.6 else PATTERNS)
        for _ in range(chance.choice((1, 1, 2, 3, 5)))
    ]
    words = [("!" if chance.random() < 0.15 else "") + word for word in words]
    return ",".join(word.upper() if chance.random() < 0.1 else word for word in words)


def make_line(chance: Random, keys: list[str]) -> str:
    """Make one line; `keys` are "TYPE BASE64"."""
    if chance.random() < 0.15:
        return chance.choice(ODD)
    kind, encoded = chance.choice(keys).split()
    roll = chance.random()
    if roll < 0.03:
        encoded = encoded[: -chance.randrange(1, 9)]
    elif roll < 0.05:
        kind = chance.choice(keys).split()[0]
    marker = chance.choice(MARKERS) if chance.random() < 0.2 else chance.choice(("", "", "", "", " ", "\t"))
    comment = chance.choice(("", "", " me@laptop", " a b  c", "\tx", " # no comment", "\r", " \r"))
    return (
        marker
        + (make_field(chance) or "box")
        + chance.choice(GAPS)
        + kind
        + chance.choice(GAPS)
        + encoded
        + comment
    )


def make_file(chance: Random, keys: list[str]) -> str:
    """Make a file of up to 40 lines, its last line with an end or without one."""
    lines = [make_line(chance, keys) for _ in range(chance.choice((1, 3, 10, 20, 40)))]
    return "\n".join(lines) + chance.choice(("\n", "\n", "", "\n\n"))
