"""How our program gets onto a host: one command, valid in every login shell, and the source when it is missing.

The command's only variables are the agent's hash, a nonce, and the host's Python. Everything the host prints
before the marker with the nonce is noise of its rc files; nothing is written to stdin before the marker.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from remote_train.errors import HostSpace, HostUnfit, UsageError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

NOISE_LIMIT = 1 << 20
"""Bytes that rc files may print before our program."""
NOISE_KEPT = 8192
"""Bytes of it that are looked at again: more than any verdict has."""
SUBFOLDERS = ("inject", "meter")
"""Of `remote_train/host`: what is loaded in the training's own Python."""
WORDS = 300
"""Characters of a host's own words that are passed on."""
_PYTHON = re.compile(r"[A-Za-z0-9_./~+-]+\Z")
_VERDICT = re.compile(rb"\0RT1 ([0-9a-f]+) (READY|NEED|FAIL[^\n]*)\n")

# Runs on whatever Python the host has; so old syntax, and the standard library only.
_STAGE0 = """
import sys, os
h, n = sys.argv[1:3]
def say(word):
    os.write(1, ("\\0RT1 " + n + " " + word + "\\n").encode("ascii", "replace"))
if sys.version_info < (3, 8):
    say("FAIL its Python is %d.%d at %s, 3.8 is needed" % (sys.version_info[:2] + (sys.executable,)))
    sys.exit(13)
r = os.path.join(os.path.expanduser("~"), ".local", "state", "remote-train")
a = os.path.join(r, "agents", h)
if not os.path.isdir(a):
    import errno, json, zlib, hashlib, struct, shutil
    m = os.umask(0o77)
    t = a + "." + n
    def fail(e):
        shutil.rmtree(t, True)
        k = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
        say("FAIL%s cannot write its state folder: %s" % (k and " disk" or "", e))
        sys.exit(13)
    try:
        os.makedirs(t)
    except OSError as e:
        fail(e)
    say("NEED")
    def take(k):
        b = b""
        while len(b) < k:
            c = os.read(0, k - len(b))
            if not c:
                shutil.rmtree(t)
                sys.exit(1)
            b += c
        return b
    s = zlib.decompress(take(min(struct.unpack(">I", take(4))[0], 1 << 22)))
    if hashlib.sha256(s).hexdigest() != h:
        say("FAIL the agent arrived damaged")
        sys.exit(60)
    try:
        for p, c in json.loads(s.decode("ascii")).items():
            f = os.path.join(t, p)
            os.makedirs(os.path.dirname(f), exist_ok=True)
            with open(f, "w") as o:
                o.write(c)
    except OSError as e:
        fail(e)
    try:
        os.rename(t, a)
    except OSError as e:
        if not os.path.isdir(a):
            fail(e)
        shutil.rmtree(t, True)
    os.umask(m)
for p in (r, os.path.dirname(a), a):
    s = os.stat(p)
    if s.st_uid != os.getuid() or s.st_mode & 0o22:
        say("FAIL %s is not ours, or others may write there: chmod 700 it" % p)
        sys.exit(13)
sys.path.insert(0, a)
from remote_train.host.agent import main
main(n)
"""


@dataclass(frozen=True)
class Agent:
    """Our shipped program: its source as one document, and the hash that names it on hosts."""

    hash: str
    source: bytes

    def upload(self) -> bytes:
        """Return what answers NEED: a length and the compressed source."""
        packed = zlib.compress(self.source, 6)
        return struct.pack(">I", len(packed)) + packed


def read_agent() -> Agent:
    """Collect `remote_train/host` as it is installed here, under its real package names, and what scripts import."""
    top = resources.files("remote_train")
    files = {"remote_train/__init__.py": "", "remote_train/report.py": _read(top / "report.py")}
    for folder in ("host", *(f"host/{name}" for name in SUBFOLDERS)):
        for entry in (top / folder).iterdir():
            if entry.name.endswith(".py"):
                files[f"remote_train/{folder}/{entry.name}"] = _read(entry)
    source = json.dumps(files, sort_keys=True).encode("ascii")
    return Agent(hashlib.sha256(source).hexdigest(), source)


def _read(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")


def make_bootstrap(agent_hash: str, nonce: str, python: str | None) -> str:
    """Return the one command a host ever gets; raise UsageError for a Python that could not be quoted."""
    candidate = python or "python3"
    if not _PYTHON.match(candidate):
        raise UsageError(
            f"python = {candidate!r} has characters that not every login shell passes on",
            hint="use a path of letters, digits and _ . / ~ + -",
        )
    stage0 = base64.b64encode(zlib.compress(_STAGE0.encode(), 9)).decode()
    return (
        "exec /bin/sh -c '"
        f"P={candidate}; command -v $P >/dev/null 2>&1 || P=python3; "
        "command -v $P >/dev/null 2>&1 || "
        f'{{ printf "\\000RT1 {nonce} FAIL it has no python3\\n"; exit 13; }}; '
        'exec $P -I -S -c "import sys,zlib,binascii;'
        'exec(zlib.decompress(binascii.a2b_base64(sys.argv[3])))" '
        f"{agent_hash} {nonce} {stage0}'"
    )


@dataclass(frozen=True)
class Verdict:
    """What the host answered: READY, NEED or FAIL…, and the bytes that followed."""

    word: str
    rest: bytes
    noise: int = 0
    """Bytes that the host's rc files printed before it."""


def parse_verdict(held: bytes, nonce: str) -> Verdict | None:
    """Return the verdict once it stands in `held`; None while only noise does."""
    for match in _VERDICT.finditer(held):
        if match.group(1) == nonce.encode():
            word = match.group(2).decode("ascii", "replace")
            return Verdict(word, held[match.end() :], match.start())
    return None


def make_unfit(host: str, noise: bytes, stderr: bytes, word: str | None = None) -> HostUnfit | HostSpace:
    """Return the error for a host that did not bring our agent up, in its own words."""
    if word is not None:
        return _make_failed(host, word)
    if b"Unknown option: -I" in stderr:
        return make_unfit(host, b"", b"", "its Python is older than 3.4, 3.8 is needed")
    words = _last_words(noise, stderr)
    hint = f"try `ssh {host} python3 --version`"
    if words == "nothing":
        hint += "; rc files or a ForceCommand there may end the session"
    return HostUnfit(f"{host}: logged in, but our agent did not come up; the host said: {words}", hint=hint)


def make_waiting(host: str, seconds: float, noise: bytes, stderr: bytes) -> HostUnfit:
    """Return the error for a host that lets us in and then waits."""
    return HostUnfit(
        f"{host}: logged in, but our agent still had not started after {seconds:g} s; "
        f"the host said: {_last_words(noise, stderr)}",
        hint="an rc file there may wait for input or start another shell, or its Python hangs: "
        f"try `ssh {host} python3 --version </dev/null`",
    )


def make_endless(host: str, noise: bytes) -> HostUnfit:
    """Return the error for a host that prints without end before our agent starts."""
    return HostUnfit(
        f"{host}: logged in, but it prints without end before our agent starts; "
        f"the host said: {_last_words(noise, b'')}",
        hint=f"look at the rc files there: `ssh {host} true` should print nothing",
    )


def _make_failed(host: str, word: str) -> HostUnfit | HostSpace:
    """Return the error for what our own program said there."""
    word = word.removeprefix("FAIL ")
    if word.startswith("disk "):
        hint = (
            "it needs room, and to be writable; our program and its runs live in ~/.local/state/remote-train"
        )
        return HostSpace(f"{host}: {word.removeprefix('disk ')}", hint=hint)
    hint = "set `python` for it in hosts.toml"
    if "state folder" in word or "not ours" in word:
        hint = "our program lives in ~/.local/state/remote-train there, which that account alone must be able to write"
    return HostUnfit(f"{host}: {word[:WORDS]}", hint=hint)


def _last_words(noise: bytes, stderr: bytes) -> str:
    """Return the last line of each stream: what matters may stand in either, an rc file's noise in the other."""
    last = (_last_line(stderr), _last_line(noise))
    return " / ".join(dict.fromkeys(line for line in last if line)) or "nothing"


def _last_line(said: bytes) -> str:
    lines = said.strip().decode("utf-8", "replace").splitlines()
    return lines[-1][-WORDS:] if lines else ""
