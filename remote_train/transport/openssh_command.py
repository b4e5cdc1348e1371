"""The command line of the user's own ssh: what ssh_config says stands, but for what a run must never depend on.

Options given on the command line win over every file. Nothing of a stranger's and no secret stands in them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from remote_train.transport import SshTarget

ALIVE_SECONDS = 5
ALIVE_COUNT = 2
"""ssh gives a silent host up after 5 s three times over (ssh_config(5), ServerAliveCountMax)."""
CONNECT_SECONDS = 5
"""Of each host that we connect to ourselves, the nearest jump host's included."""
PROXIED_SECONDS = 20
"""A jump host logs us in before the host's banner can come; less than a login may take, so that silence is told apart."""

NEVER = (
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "Tunnel=no",
    "NoHostAuthenticationForLocalhost=no",
    "VerifyHostKeyDNS=no",
    "RequestTTY=no",
    "EscapeChar=none",
    # An existing connection of the user's is used; none is left behind by us.
    "ControlMaster=no",
    "ControlPersist=no",
    f"ServerAliveInterval={ALIVE_SECONDS}",
    f"ServerAliveCountMax={ALIVE_COUNT}",
)
PASSPHRASES = 3
"""A mistyped passphrase is nothing that a host refused; ssh counts them with passwords, which are not typed again."""
NO_DESCRIPTOR = "ProxyUseFdpass=no"
"""As ssh does with a ProxyJump: the command for it passes none, whatever ssh_config wants of others."""
UNASKED = "PasswordAuthentication=no"
# Not known to every ssh, and only in the way when ssh_config sets them.
YOUNGER = {
    "remotecommand": "RemoteCommand=none",
    "stdinnull": "StdinNull=no",
    "forkafterauthentication": "ForkAfterAuthentication=no",
    "sessiontype": "SessionType=default",
}


class Way(Protocol):
    """How ssh is started for one address; config.ssh_target makes these."""

    @property
    def hostname(self) -> str:
        """What the address means, as ssh_config has it."""

    @property
    def program(self) -> Sequence[str]:
        """ssh, and whose configuration it reads."""

    @property
    def arguments(self) -> Sequence[str]:
        """What hosts.toml says of the host, and last its address."""

    @property
    def proxied(self) -> bool:
        """It goes through a jump host or a command."""

    @property
    def patient(self) -> bool:
        """ssh_config says itself how long to wait."""

    @property
    def keywords(self) -> frozenset[str]:
        """The options that this ssh knows, in lower case."""

    @property
    def ciphers(self) -> str:
        """The ciphers to ask for; "": those of ssh_config."""

    @property
    def card(self) -> str | None:
        """The library of PKCS11Provider."""

    @property
    def jumps(self) -> Sequence[Way]:
        """How it goes to each host on the way, the nearest first; their own `jumps` do not count."""


@dataclass(frozen=True)
class Policy:
    """What we ask of ssh beside the user's ssh_config."""

    strict: Literal["yes", "ask", "accept-new"]
    prompts: bool
    """A person is there, whom ssh may ask at the terminal."""
    pin: str | None = None
    known_hosts_files: tuple[Path, ...] = ()
    """Where keys may be revoked, which a pin does not outweigh."""
    password: bool = False
    """The account's password may be asked for."""
    alias: str | None = None
    """The name that the host's key is known under, whichever address answers."""
    locked: bool = False
    """A key that may be offered has a passphrase."""
    jumps: tuple[Policy, ...] = ()
    """What is asked of the ssh to each host on the way."""


def make_hop_policy(hop: SshTarget, policy: Policy) -> Policy:
    """Return what is asked of the ssh to a jump host of a host with this policy."""
    files, strict = tuple(hop.known_hosts_files), hop.strict_host_key_checking
    return Policy(strict, policy.prompts, hop.pin, files, hop.password)  # type: ignore[arg-type]  # one of the three


def make_command(way: Way, policy: Policy, log: str, command: str) -> list[str]:
    """Return the argv that runs `command` on the host; `log` is the file that ssh's own words go to."""
    options = [*_make_options(way, policy), "LogLevel=DEBUG1"]
    options += [text for word, text in YOUNGER.items() if word in way.keywords]
    if way.jumps:
        options += [f"ProxyCommand={make_jump_command(way, policy)}", NO_DESCRIPTOR]
    given = [word for option in options for word in ("-o", option)]
    return [*way.program, "-T", "-E", log, *given, *way.arguments, command]


def _make_options(way: Way, policy: Policy) -> list[str]:
    """Return what holds for every ssh of ours, to a host or to one on the way."""
    options = [*_choose_strictness(policy), *NEVER]
    options.append(f"NumberOfPasswordPrompts={PASSPHRASES if policy.locked else 1}")
    options += [] if policy.password else [UNASKED]
    options += [f"Ciphers={way.ciphers}"] if way.ciphers else []
    # Where a person may be asked by a host on the way, the login as a whole is bounded (openssh.py).
    if not way.patient and not (way.proxied and policy.prompts):
        options.append(f"ConnectTimeout={PROXIED_SECONDS if way.proxied else CONNECT_SECONDS}")
    if policy.pin:
        options += make_pin_options(policy.pin, policy.known_hosts_files)
    if policy.alias:
        options.append(f"HostKeyAlias={policy.alias}")
    return options


def _choose_strictness(policy: Policy) -> list[str]:
    """Never weaker than asking; without a person there is nobody to ask."""
    strict = "yes" if policy.pin or (policy.strict == "ask" and not policy.prompts) else policy.strict
    return [f"StrictHostKeyChecking={strict}", f"BatchMode={'no' if policy.prompts else 'yes'}"]


def make_jump_command(way: Way, policy: Policy) -> str:
    """Return a ProxyCommand that does what ProxyJump does, and holds every host on the way to our policy too.

    ssh would start those by itself, with what ssh_config says alone: StrictHostKeyChecking no, no pin, and questions.
    """
    command = ""
    for jump, asked in zip(way.jumps, policy.jumps, strict=True):
        options = [*_make_options(jump, asked), "LogLevel=INFO"]
        if command:
            options += [f"ProxyCommand={command}", NO_DESCRIPTOR]
        given = [word for option in options for word in ("-o", option)]
        # The last ssh replaces %h and %p by where it wants to go; every other % is meant for those within.
        inner, named = (
            " ".join(shlex.quote(word.replace("%", "%%")) for word in words)
            for words in ([*jump.program, "-T", *given, "-W"], jump.arguments)
        )
        command = f"{inner} '[%h]:%p' {named}"
    return command


def make_pin_options(pin: str, files: Sequence[Path]) -> list[str]:
    """Return options that trust the key with one fingerprint and no other, unless a file says that it is revoked.

    ssh asks the command for known keys (KnownHostsCommand, OpenSSH 8.5). A connection that exists already was checked
    in another way, so it is not used. What was offered instead is told: the log of a jump host's ssh does not say it.
    """
    script = (
        'if test "$1" = "$2"; then echo "$3 $4 $5"; elif test "$1" != NONE; then echo "offered, and not pinned: $4 $1" >&2; fi; '
        "shift 5; "
        'test $# = 0 || grep -hs "^[[:blank:]]*@revoked" "$@"; exit 0'
    )
    words = ["/bin/sh", "-c", script, "sh", "%f", pin, "%H", "%t", "%K"]
    words = [quote(word) for word in words]
    words += [quote(str(file).replace("%", "%%")) for file in files]
    return [
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        "ControlPath=none",
        f"KnownHostsCommand={' '.join(words)}",
    ]


def quote(word: str) -> str:
    """Quote a word as ssh splits the values of its options, and a command of its own into an argv."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def show_command(way: Way) -> str:
    """Return what a person types to see the same by hand."""
    program = [way.program[0].rpartition("/")[2], *way.program[1:]]
    return shlex.join([*program, *(word for word in way.arguments if word != "--")])
