"""What a login decides, without any SSH library: whose key may answer, how a refusal reads.

Also what every login needs around the library: a socket that swallows the ident line which `dial` has already sent.
"""

from __future__ import annotations

import shlex
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote_train.errors import HostKeyRefused, LoginRefused
from remote_train.transport import known_hosts
from remote_train.transport.dial import IDENT
from remote_train.transport.known_hosts import KnownHostsFile, Verdict, make_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.transport import Ask, Notify, SshTarget

LOGIN_SECONDS = 30.0  # DESIGN §8: everything after the banner, human prompts not counted
HUMAN = ("keyboard-interactive", "password")
TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


# ---- the host's key ----


@dataclass(frozen=True)
class HostIdentity:
    """All that is known beforehand about who a host is."""

    target: SshTarget
    files: tuple[KnownHostsFile, ...]
    pin: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that its key may be known under."""
        return known_hosts.make_host_names(
            self.target.addresses, self.target.port, self.target.host_key_alias
        )

    @property
    def key_types(self) -> tuple[str, ...]:
        """The key types to ask the server for first."""
        return known_hosts.known_key_types(self.files, self.names)

    def judge(self, key_type: str, key: bytes) -> Verdict:
        """Judge the key offered: a pin decides alone, but for revocation; else the files, as ssh reads them."""
        verdict = known_hosts.match_key(self.files, self.names, key_type, key)
        if verdict.kind == "revoked":
            return verdict
        if self.pin:
            return Verdict("match" if known_hosts.match_pin(self.pin, key) else "changed")
        if verdict.kind != "unknown" or self.target.host_key_alias:
            return verdict
        # Like ssh: a key known for the address on port 22 is good on any other port, but a different one proves nothing.
        plain = known_hosts.match_key(self.files, [a.lower() for a in self.target.addresses], key_type, key)
        return plain if plain.kind in {"match", "revoked"} else verdict


def read_identity(target: SshTarget, pin: str | None, notify: Notify | None) -> HostIdentity:
    """Read what the known_hosts files say now."""
    identity = HostIdentity(target, known_hosts.read_known_hosts(target.known_hosts_files), pin)
    if notify:
        for notice in known_hosts.find_entries(identity.files, identity.names)[1]:
            notify(notice)
    return identity


def make_host_key_error(
    identity: HostIdentity, address: str, key_type: str, key: bytes
) -> HostKeyRefused | None:
    """Return the refusal of a host's key with both fingerprints, where it was looked up and what to type; None: good."""
    verdict, offered = identity.judge(key_type, key), f"{key_type} {make_fingerprint(key)}"
    return None if verdict.kind == "match" else make_refusal(identity, address, verdict, offered)


def make_refusal(identity: HostIdentity, address: str, verdict: Verdict, offered: str) -> HostKeyRefused:
    """Return the refusal that a verdict leads to; `offered` is the key's type and fingerprint."""
    who = identity.target.name + (f" ({address})" if address != identity.target.name else "")
    if verdict.kind == "changed" and not verdict.known:
        message = f"the key of {who} is not the pinned one: it offers {offered}, host_key in hosts.toml is {identity.pin}"
        hint = f"someone may be listening in; if you know why it changed: {_trust(identity)}"
    else:
        words = {"revoked": _word_revoked, "changed": _word_changed, "unknown": _word_unknown}
        message, hint = words[verdict.kind](who, offered, verdict, identity)
    known = [f"{e.key_type} {make_fingerprint(e.key)}" for e in verdict.known]
    return HostKeyRefused(
        message,
        hint=hint,
        verdict=verdict.kind,
        offered=offered,
        known=known,
        where=verdict.where,
        key_of=plain_name(identity.target),
    )


def _word_revoked(who: str, offered: str, verdict: Verdict, identity: HostIdentity) -> tuple[str, str]:
    message = f"the key that {who} offers ({offered}) is revoked in {verdict.where}"
    return message, f"do not connect; ask whoever runs {identity.target.name}"


def _word_changed(who: str, offered: str, verdict: Verdict, identity: HostIdentity) -> tuple[str, str]:
    entry = verdict.known[0]
    message = f"the key of {who} has changed: it offers {offered}, {entry.where} has {entry.key_type} {make_fingerprint(entry.key)}"
    return message, f"someone may be listening in; if you know why it changed: {_trust(identity)}"


def _word_unknown(who: str, offered: str, verdict: Verdict, identity: HostIdentity) -> tuple[str, str]:
    message = f"the key of {who} is not known: it offers {offered}"
    if verdict.authority_only:
        message += (
            f"; {verdict.where} trusts a certificate authority for it, which this transport cannot check"
        )
        return message, 'transport = "openssh" for this host in hosts.toml'
    return message, f"compare it with what the host itself says, then: {_trust(identity)}"


def plain_name(target: SshTarget) -> str:
    """Return the name by which hosts.toml and ssh_config know a host, on the way to another or not."""
    return target.name.removeprefix("jump host ")  # how host_target.py calls those on the way


def _trust(identity: HostIdentity) -> str:
    return shlex.join(["remote-train", "hosts", "trust", plain_name(identity.target)])


def _ssh(target: SshTarget, address: str) -> str:
    port = [] if target.port == known_hosts.SSH_PORT else ["-p", str(target.port)]
    return shlex.join(["ssh", *port, f"{target.user}@{address or target.addresses[0]}"])


def ask_about_key(identity: HostIdentity, refusal: HostKeyRefused, ask: Ask) -> bool:
    """Ask a person whether an unknown key may be trusted; only for a verdict of unknown, never for a changed key."""
    if refusal.facts["verdict"] != "unknown":
        return False
    question = f"{refusal.message[:1].upper()}{refusal.message[1:]}.\nTrust it and remember it for {identity.names[0]}?"
    return ask(question)


def write_trusted_key(identity: HostIdentity, key_type: str, key: bytes, notify: Notify | None) -> None:
    """Remember an accepted key in the user's first known_hosts file; say so where that fails."""
    if not identity.target.known_hosts_files:
        return
    try:
        file, hashed = identity.target.known_hosts_files[0], identity.target.hash_known_hosts
        known_hosts.write_known_host(file, identity.names[0], key_type, key, hashed=hashed)
    except (OSError, ValueError) as error:
        if notify:
            notify(
                f"the key of {identity.target.name} is trusted for now, but could not be remembered: {error}"
            )


# ---- our keys ----


@dataclass
class Attempts:
    """What was offered to the host, what was not and why, and what the host said."""

    tried: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    said: str = ""
    passed: list[str] = field(default_factory=list)
    """What was right, but not enough alone."""
    unanswered: bool = False
    """The host asked something that nobody answered."""
    address: str = ""
    """Which of the host's it was."""


def make_login_error(target: SshTarget, attempts: Attempts) -> LoginRefused:
    """Return the refusal of a login: which keys were offered, which were not, what the host accepts and said."""
    offered = ", ".join(attempts.tried) or "no key (none usable was found)"
    message = f"{target.name} did not let {target.user} in; offered: {offered}"
    if attempts.skipped:
        message += "; not offered: " + ", ".join(attempts.skipped)
    if attempts.passed:
        message += f"; {', '.join(attempts.passed)} was right, and something more is asked for"
    if attempts.methods:
        message += "; the host accepts: " + ", ".join(attempts.methods)
    if attempts.said:
        message += f'; it said "{attempts.said}"'
    facts = {"tried": attempts.tried, "skipped": attempts.skipped, "methods": attempts.methods}
    return LoginRefused(message, hint=_choose_login_hint(target, attempts), **facts)


def _choose_login_hint(target: SshTarget, attempts: Attempts) -> str:
    check = _ssh(target, attempts.address)
    human = [method for method in attempts.methods if method in HUMAN]
    if attempts.unanswered:
        return "run the command on a terminal: what this host asks at each login, a person has to answer"
    if human == ["password"] and not target.password and "publickey" not in attempts.methods:
        return f"password = true for {plain_name(target)} in hosts.toml asks for the password on a terminal; or use a key: ssh-copy-id"
    if (
        human
        and not any(method in attempts.tried for method in human)
        and ("publickey" not in attempts.methods or attempts.passed)
    ):
        return f"run the command on a terminal, where this host can ask ({', '.join(human)})"
    if attempts.methods and "publickey" not in attempts.methods and not human:
        return 'this transport has none of these; transport = "openssh" in hosts.toml uses ssh for this host'
    return f"ssh-copy-id puts a key there; check with {check}"


# ---- around the library ----


AHEAD = 256 * 1024


class LoginSocket(socket.socket):
    """The dialled socket: swallows the ident that the library writes again, and can gather writes into one.

    While `eager`, every packet is acknowledged at once: before the command runs, sshd leaves Nagle's algorithm on, and
    each of its small answers would wait 40 ms for a delayed acknowledgement.
    """

    def __init__(
        self, dialled: socket.socket, ahead: bytes = b"", leave: Callable[[], object] | None = None
    ) -> None:
        super().__init__(fileno=dialled.detach())
        self._prompt = TCP_QUICKACK is not None and self.family != socket.AF_UNIX
        self._leave = leave
        self.eager = True
        self.heard = time.monotonic()
        """When a byte came last."""
        self.broken = False
        """A write has failed: the connection is gone, whatever the library has noticed of it."""
        self._ident: bytes = IDENT
        self._ahead = memoryview(ahead)
        self._gathered: list[bytes] | None = None
        self._order = threading.Lock()  # packets are numbered: none may overtake those held back

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]  # the library sends bytes only
        """Send, gather or swallow; return the number of bytes taken."""
        if self._ident:
            assert data == self._ident, "the library's first write is our ident"  # noqa: S101 - our own invariant
            self._ident = b""
            return len(data)
        with self._order:
            if self._gathered is None:
                return self._write(data, flags)
            self._gathered.append(bytes(data))
            return len(data)

    def _write(self, data: bytes, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except TimeoutError:
            raise
        except OSError:
            self.broken = True
            raise

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive, and acknowledge at once while eager; later ahead of what is asked for.

        The library asks for each packet twice, which costs more than its decryption.
        """
        if self._ahead:
            data, self._ahead = bytes(self._ahead[:size]), self._ahead[size:]
            return data
        data = super().recv(size if self.eager else AHEAD, flags)
        if len(data) > size:
            self._ahead, data = memoryview(data)[size:], data[:size]
        self.heard = time.monotonic()
        if self.eager and self._prompt and TCP_QUICKACK is not None:
            self.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 1)
        return data

    def gather(self) -> None:
        """Hold back what is sent from now on."""
        with self._order:
            self._gathered = self._gathered or []

    def release(self) -> None:
        """Send what was held back as one write."""
        with self._order:
            held, self._gathered = b"".join(self._gathered or ()), None
            while held:
                try:
                    held = held[self._write(held) :]
                except TimeoutError:  # the library polls with a short timeout
                    continue

    def close(self) -> None:
        """Close it, and then what carries it."""
        super().close()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
