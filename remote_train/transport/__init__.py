"""The seam between the session and the wire: one byte stream to one command on a host.

Only the shapes live here. `paramiko_ssh` speaks SSH, `local` starts a child, `fake` plays a scripted host;
`dial` finds out whether an SSH server answers at all, and imports none of them.

A transport carries bytes and knows nothing of frames. The end of the stream says nothing about success: the
session knows from its own END frame whether everything came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

Ask = Callable[[str], bool]
AskSecret = Callable[[str, bool], str | None]
"""The prompt and whether what is typed may be seen; returns what was typed, None when the person gave up."""
Notify = Callable[[str], None]


@runtime_checkable
class Person(Protocol):
    """An `Ask` who can also type what nobody may read over a shoulder."""

    def __call__(self, question: str) -> bool:
        """Return the answer to a yes-or-no question."""

    def hidden(self, question: str) -> str:
        """Return what is typed without an echo, "" for nothing."""


class Channel(Protocol):
    """One byte stream to one command on the host."""

    def send(self, data: bytes) -> None:
        """Send all of `data`; block while the other side does not read. Raise ConnectionLost."""

    def receive(self, timeout: float) -> bytes | None:
        """Return what has come (any size), b"" at the end of the stream, None after `timeout` seconds of nothing.

        Raise ConnectionLost where it is known that the connection broke, rather than that the command ended.
        """

    def stderr_tail(self) -> bytes:
        """Return the last 8 KiB or less that the command wrote to its stderr."""

    def close(self) -> None:
        """End the stream and the command's stdin; safe to call twice, never raises, returns within 1 s."""


class Transport(Protocol):
    """A way to reach one host."""

    name: str

    def open(self, command: str) -> Channel:
        """Connect, log in and run `command` in the account's shell. Raise an error of the tree or ConnectionLost."""

    def close(self) -> None:
        """Close what is open; safe to call twice."""


class SshTarget(Protocol):
    """What a transport has to know of a host; `sshconfig` makes these."""

    @property
    def name(self) -> str:
        """The name that the user gave, for messages."""

    @property
    def addresses(self) -> Sequence[str]:
        """Names or IP addresses of this one host, the preferred first."""

    @property
    def port(self) -> int:
        """TCP port."""

    @property
    def user(self) -> str:
        """Account on the host."""

    @property
    def identity_files(self) -> Sequence[Path]:
        """Private keys to offer, in order; empty: ~/.ssh/id_ed25519, id_ecdsa, id_rsa."""

    @property
    def identities_only(self) -> bool:
        """Offer a key of the agent only when it is one of `identity_files`."""

    @property
    def identity_agent(self) -> str | None:
        """Path of the agent's socket, "none" for no agent, None for $SSH_AUTH_SOCK."""

    @property
    def known_hosts_files(self) -> Sequence[Path]:
        """Files of host keys; the first is the one that a newly accepted key is added to."""

    @property
    def hash_known_hosts(self) -> bool:
        """Whether a line that is added does not show whom it speaks of."""

    @property
    def host_key_alias(self) -> str | None:
        """Name to look up in known_hosts instead of the address."""

    @property
    def certificate_files(self) -> Sequence[Path]:
        """Certificates to offer with the key that each is for, besides the `-cert.pub` beside a key."""

    @property
    def address_family(self) -> str:
        """Which addresses to dial: "any", "inet" or "inet6"."""

    @property
    def bind_address(self) -> str | None:
        """The address of this machine to dial from; None: the system's choice."""

    @property
    def connect_timeout(self) -> int | None:
        """Seconds to wait for the banner, where that is less than our own limit."""

    @property
    def strict_host_key_checking(self) -> str:
        """What an unknown key leads to: "ask", "accept-new" or "yes" (refused)."""

    @property
    def pin(self) -> str | None:
        """The fingerprint of its key in hosts.toml."""

    @property
    def password(self) -> bool:
        """Whether the user wants to be asked for a password."""

    @property
    def jumps(self) -> Sequence[SshTarget]:
        """The hosts to go through, the nearest first; their own `jumps` do not count."""

    @property
    def proxy_commands(self) -> Mapping[str, str]:
        """For each address a line for the user's shell that carries the connection there; empty where it is dialled."""
