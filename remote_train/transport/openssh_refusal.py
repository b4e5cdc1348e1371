"""A key that ssh refused, the host's or that of a host on the way to it: whose, which, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from remote_train.errors import HostKeyRefused
from remote_train.transport import known_hosts, login
from remote_train.transport.known_hosts import Entry, Verdict, make_fingerprint
from remote_train.transport.openssh_trust import names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from remote_train.transport.openssh_words import Failure

WORDS = 300
OFFENDING = re.compile(r"Offending .*key in (?P<where>.+:\d+)$")
HAS_CHANGED = re.compile(r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed")
IS_REVOKED = re.compile(
    r"REVOKED HOST KEY DETECTED|is marked as revoked|host key for \S+ was revoked|revoked by file"
)
NOT_KNOWN = re.compile(r"No \S+ host key is known for")
NOT_TAKEN = re.compile(r"Host key verification failed")
"""ssh's last word on any key: an unknown or changed one, one that a person said no to, or that could not be looked up."""
BAD_CERTIFICATE = re.compile(r"[Cc]ertificate.*(invalid|expired|not yet valid)")
NOT_PROVEN = re.compile(r"incorrect signature|signature verification failed", re.IGNORECASE)
REFUSED_NAME = re.compile(
    r"ost key (?:is known )?for (\S+) (?:has changed|is marked as|was revoked|and you have)"
)
KEY_KIND = re.compile(r"(?:fingerprint for the|^No|^The) (\S+) (?:key sent|host key)")
FINGERPRINT = re.compile(r"(?:^|\s)(SHA256:[A-Za-z0-9+/]{43})\b")
TELLING = re.compile(r"SHA256:|Error checking |Offending |ost key (is known )?for |revoked")


def explain_key(failure: Failure) -> Exception | None:
    """Return the refusal of the host's key, or of a jump host's, which only its own words describe."""
    if not failure.story.key:
        failure = _find_hop(failure)
    words, story = failure.words, failure.story
    if said := find_line(NOT_PROVEN, words):
        return HostKeyRefused(
            f"{failure.identity.target.name} cannot prove that {story.key or 'its key'} is its own: {said[:WORDS]}"
        )
    verdict = _judge(failure)
    if verdict is None:
        return None
    if not story.key:
        return _refuse_on_the_way(failure, verdict.kind)
    pinned = verdict.kind == "changed" and failure.identity.pin
    if verdict.kind != "unknown" and not (verdict.known or pinned):
        return _refuse_in_its_words(failure, verdict.kind)
    refusal = login.make_refusal(failure.identity, failure.address, verdict, story.key)
    if why := find_line(BAD_CERTIFICATE, words):
        refusal.message += f"; ssh says: {why}"
        refusal.args = (refusal.message,)
    return refusal


def _find_hop(failure: Failure) -> Failure:
    """Return the failure as that of the jump host whose key is refused, by the name that its ssh calls it."""
    name, kind, fingerprint = (
        next((found[1] for line in failure.words if (found := pattern.search(line))), "")
        for pattern in (REFUSED_NAME, KEY_KIND, FINGERPRINT)
    )
    hop = next((each for each in failure.hops if name.lower() in names_of(each[0])), None)
    if hop is None:
        return failure
    offered = f"{kind} {fingerprint}" if fingerprint else f"a key of type {kind}"
    story = replace(failure.story, key=offered, words=failure.words)
    return replace(failure, identity=hop[0], address=hop[1], story=story)


def _refuse_on_the_way(failure: Failure, kind: str) -> HostKeyRefused:
    """Return the refusal of a key on a way that only the user's ssh_config knows, with what tells most of it first."""
    telling = _find_telling(failure)
    said = "; ".join(telling or [line for line in failure.words if not line.startswith("@")])
    return HostKeyRefused(
        f"{failure.identity.target.name}: a host on the way to it: {said[:WORDS]}",
        hint="connect to that host once with ssh, which tells you what to do about its key",
        verdict=kind,
        offered="key unknown",
        known=[],
        where="",
        key_of=None,
    )


def _judge(failure: Failure) -> Verdict | None:
    """Return ssh's verdict on the key, with what our own reading of the files knows of it; None: it had none to make."""
    words = failure.words
    entries = known_hosts.find_entries(failure.identity.files, names_of(failure.identity))[0]
    fingerprint = _fingerprint(failure)
    if find_line(IS_REVOKED, words):
        revoked = [entry for entry in entries if entry.marker == "revoked"]
        same = [entry for entry in revoked if make_fingerprint(entry.key) == fingerprint]
        if not fingerprint and len(revoked) == 1:  # a jump host's ssh does not say which it is
            same = revoked
        return Verdict("revoked", tuple(same))
    if find_line(HAS_CHANGED, words):
        return Verdict("changed", _find_offending(failure, entries))
    said_no = bool(failure.story.key) and not _find_telling(failure)
    if find_line(NOT_KNOWN, words) or (said_no and find_line(NOT_TAKEN, words)):
        return _judge_not_known(failure, entries)
    return Verdict("refused") if find_line(NOT_TAKEN, words) else None


def _find_telling(failure: Failure) -> list[str]:
    """Return the lines that tell most of what is wrong with the key."""
    return [line for line in failure.words if TELLING.search(line)]


def _judge_not_known(failure: Failure, entries: Sequence[Entry]) -> Verdict:
    """A key that ssh does not know may still be a known host's with a key of another type (known_hosts.match_key)."""
    fingerprint = _fingerprint(failure)
    if same := [e for e in entries if e.marker == "revoked" and make_fingerprint(e.key) == fingerprint]:
        return Verdict("revoked", tuple(same))
    if failure.identity.pin:
        return Verdict("changed")
    known = known_hosts.find_entries(failure.identity.files, failure.identity.names)[0]
    plain = tuple(entry for entry in known if not entry.marker)
    return Verdict("changed", plain) if plain else Verdict("unknown")


def _fingerprint(failure: Failure) -> str:
    """Return the fingerprint of the key that was offered; "" where it is not told."""
    found = FINGERPRINT.search(failure.story.key)
    return found[1] if found else ""


def _find_offending(failure: Failure, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Find the line that ssh names; it may be none of these files: a KnownHostsCommand's, or the system's."""
    places = [found["where"] for line in failure.words if (found := OFFENDING.search(line))]
    return tuple(e for e in entries if e.where in places)


def _refuse_in_its_words(failure: Failure, kind: str) -> HostKeyRefused:
    """Return the refusal of a key of whose reason we have only ssh's word."""
    pattern = {"revoked": IS_REVOKED, "changed": OFFENDING}.get(kind, TELLING)
    said = find_line(pattern, failure.words) or last_line(failure.words)
    what = {"revoked": "is revoked", "changed": "has changed"}.get(kind, "is refused by ssh")
    name = failure.identity.target.name
    hint = f"do not connect; ask whoever runs {name}"
    return HostKeyRefused(
        f"the key of {name} {what}: it offers {failure.story.key}; ssh says: {said[:WORDS]}",
        hint="this has to be mended first: `ssh -v` by hand shows the same" if kind == "refused" else hint,
        verdict=kind,
        offered=failure.story.key,
        known=[],
        where="",
    )


def find_line(pattern: re.Pattern[str], words: Iterable[str]) -> str | None:
    """Return the first line in which a pattern is found."""
    return next((line for line in words if pattern.search(line)), None)


def last_line(words: Sequence[str]) -> str:
    """Return the last line, of a bounded length; "" of none."""
    return words[-1][:WORDS] if words else ""
